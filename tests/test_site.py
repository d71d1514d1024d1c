import pytest
import torch
import transformers as t
from torch import nn

import iit
from iit import Site
from iit.site import _indices, resolve
from tests.families import make, prompts
from tests.seeds import shifted


def test_only_the_ends_of_the_network_have_no_layer():
    for component in ("embedding_output", "final_norm_output"):
        assert Site(component).layer is None
        with pytest.raises(ValueError, match="has no layer"):
            Site(component, layer=0)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"component": "block_outptu", "layer": 1}, "Did you mean 'block_output'.*mlp_activation"),
        ({}, "component or a module"),
        ({"component": "block_output", "layer": 0, "module": "h"}, "component or a module"),
        ({"component": "block_output"}, "needs a layer"),
        ({"component": "block_output", "layer": 0, "head": 1}, "has no heads"),
        ({"component": "block_output", "layer": 0, "side": "input"}, "`side` belongs to modules"),
        ({"module": "h", "side": "in"}, "neither 'input' nor 'output'"),
        ({"module": "h", "layer": 1}, "belong to components"),
        ({"component": "block_output", "layer": 0, "position": []}, "position is empty"),
        ({"component": "block_output", "layer": 0, "position": [1, 1]}, "names one twice"),
        ({"component": "query_output", "layer": 0, "head": [0, 0]}, "names one twice"),
    ],
)
def test_impossible_sites(kwargs, said):
    with pytest.raises(ValueError, match=said):
        Site(**kwargs)


def test_indices_are_ints():
    """Told apart by the site itself: annotations are checked in tests only."""
    assert _indices("layer", torch.tensor(3)) == 3
    assert _indices("head", range(2)) == (0, 1)
    assert type(_indices("position", torch.tensor([1, 2]))[0]) is int
    for name, value, said in [
        ("layer", "0", "layer is an int; got '0'"),
        ("layer", [0], "layer is an int; got"),
        ("head", "0", "head is an int or several"),
        ("head", 1.0, "head is an int or several"),
        ("position", ["s1", 2], "position is a role, an int, or several of one kind"),
    ]:
        with pytest.raises(ValueError, match=said):
            _indices(name, value)


def test_sites_are_values_that_print_themselves():
    assert Site("block_output", layer=1, position=[1, 2]) == Site(
        "block_output", layer=1, position=(1, 2)
    )
    assert len({Site("block_output", layer=1), Site("block_output", layer=1)}) == 1
    assert str(Site("block_output", layer=17, position="s2")) == "block_output[17] @ s2"
    assert (
        str(Site("query_output", layer=3, head=[0, 5], position=-1))
        == "query_output[3].head[0, 5] @ -1"
    )
    assert str(Site(module="h.3.mlp")) == "h.3.mlp:output"


def test_unknown_modules_are_named_with_what_is_close(tiny_gpt2):
    with pytest.raises(
        ValueError, match=r"no module 'transformer.h.0.mpl'; close to it: .*transformer.h.0.mlp"
    ):
        resolve(tiny_gpt2, Site(module="transformer.h.0.mpl"))
    with pytest.raises(ValueError, match=r"no module 'xyz'; close to it: \['transformer'"):
        resolve(tiny_gpt2, Site(module="xyz"))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_vectors_have_one_position():
    network, x = Pair(), torch.randn(5, 3)
    site = Site(module="first")
    assert iit.capture(network, x, site)[site].shape == (5, 1, 4)
    edited = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})
    torch.testing.assert_close(edited(x), network.second(torch.zeros(5, 4)))


def test_images_have_pixels_as_positions():
    network, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), torch.randn(2, 1, 5, 4)
    site = Site(module="0", position=[0, 3])
    found = iit.capture(network, x, site)[site]
    image = network[0](x)
    torch.testing.assert_close(found, torch.stack([image[:, :, 0, 0], image[:, :, 1, 1]], 1))
    out = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})(x)
    expected = image.clone()
    expected[:, :, 0, 0] = expected[:, :, 1, 1] = 0
    torch.testing.assert_close(out, expected.relu())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_have_time_steps_as_positions(kind, batch_first):
    network = nn.Sequential()
    network.add_module("rnn", kind(3, 4, batch_first=batch_first))
    x = torch.randn(2, 5, 3)
    given = x if batch_first else x.transpose(0, 1)
    site = Site(module="rnn", position=-1)
    out = network(given)[0]
    torch.testing.assert_close(
        iit.capture(network, given, site)[site][:, 0], out[:, -1] if batch_first else out[-1]
    )
    edited, state = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})(given)
    last = edited[:, -1] if batch_first else edited[-1]
    assert float(last.detach().abs().max()) == 0.0
    torch.testing.assert_close(state, network(given)[1])


def read_and_zero(network, site, *args, **kwargs):
    """What passes at a module's site, and the network's output with it set to zero; under no_grad,
    as capture runs.
    """
    seen = []
    with torch.no_grad():
        before = network(*args, **kwargs)
        attached = resolve(network, site).attach(seen.append)
        network(*args, **kwargs)
        attached.remove()
        attached = resolve(network, site).attach(torch.zeros_like)
        after = network(*args, **kwargs)
        attached.remove()
    assert len(seen) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    return seen[0], before, after


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


# what the fused path says where it is not off
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize(
    ("path", "width"),
    [("layers.0", 8), ("layers.1.linear1", 16), ("layers.1.self_attn", 8), ("layers.0.norm1", 8)],
)
def test_encoders_of_torch_run_their_modules_when_asked(path, width, padding):
    """Their fused path skips modules and packs away padding; it is off for the encoder's own
    forward only.
    """
    torch.manual_seed(shifted(0))
    network = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
    ).eval()
    x = torch.randn(2, 5, 8)
    found, before, after = read_and_zero(
        network, Site(module=path), x, src_key_padding_mask=padding
    )
    assert found.shape == (2, 5, width)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.backends.mha.get_fastpath_enabled()
    hidden = x
    for layer in network.layers:
        hidden = layer(hidden, src_key_padding_mask=padding)
        if layer is network.layers[0] and path == "layers.0":
            real = slice(None) if padding is None else ~padding
            torch.testing.assert_close(found[real], hidden[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["layers.0", "layers.0.linear2", "layers.0.self_attn", ""])
def test_modules_inside_time_first_encoders_are_time_first(path):
    torch.manual_seed(shifted(0))
    network = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=False), 1, enable_nested_tensor=False
    ).eval()
    x = torch.randn(5, 2, 8)  # [time, batch, width]
    found, _, _ = read_and_zero(network, Site(module=path), x)
    alone, _, _ = read_and_zero(network, Site(module=path), x[:, 1:])
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-5)
    assert found.shape == (2, 5, 8)


def test_an_input_is_replaced_wherever_it_is_passed():
    """Self-attention gets one tensor as query, key and value."""
    torch.manual_seed(shifted(0))
    network, x, y = (
        nn.MultiheadAttention(8, 2, batch_first=True).eval(),
        torch.randn(2, 3, 8),
        torch.randn(2, 3, 8),
    )
    attached = resolve(network, Site(module="", side="input")).attach(lambda h: y)
    found = network(x, key=x, value=x)[0]
    crossed = network(x, key=x.clone(), value=x)[0]
    attached.remove()
    torch.testing.assert_close(found, network(y, y, y)[0])
    torch.testing.assert_close(crossed, network(y, x, y)[0])


class Nested(nn.Module):
    def forward(self, ids, *, options):
        return {"ids": ids, "pair": (options["x"] + 1, options["x"] + 2)}


def test_the_first_floating_tensor_of_a_nest_is_taken():
    network, x, y = Nested(), torch.zeros(2, 3), torch.full((2, 3), 5.0)
    for side, first, second in (("output", 5.0, 2.0), ("input", 6.0, 7.0)):
        attached = resolve(network, Site(module="", side=side)).attach(lambda h: y.unsqueeze(1))
        out = network(torch.arange(2), options={"x": x})
        attached.remove()
        assert type(out) is dict
        assert out["ids"].tolist() == [0, 1]
        assert [float(part.unique()) for part in out["pair"]] == [first, second]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x, lengths):
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1]


def test_what_has_no_positions_is_refused():
    network = Packed()
    attached = resolve(network, Site(module="rnn")).attach(lambda h: None)
    with pytest.raises(ValueError, match="PackedSequence has no positions"):
        network(torch.randn(2, 5, 3), torch.tensor([5, 3]))
    attached.remove()
    for given, said in (
        (torch.zeros(3), "shape .3,. do not say which dimension has the batch"),
        (torch.arange(3), "no floating-point tensor"),
    ):
        network = nn.Identity()
        attached = resolve(network, Site(module="")).attach(lambda h: None)
        with pytest.raises(ValueError, match=said):
            network(given)
        attached.remove()


def test_compiled_networks_are_refused(tiny_llama):
    for network, said in [
        (torch.compile(tiny_llama, backend="eager"), "The network is compiled"),
        (
            nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")),
            "Its module '0' is compiled",
        ),
    ]:
        for site in (Site("block_output", layer=0), Site(module="")):
            with pytest.raises(ValueError, match=said):
                resolve(network, site)
    network = nn.Linear(2, 2)
    network.compile(backend="eager")
    with pytest.raises(ValueError, match=r"is compiled.*in place: load it again"):
        resolve(network, Site(module=""))


def mamba():
    config = t.MambaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    return t.MambaForCausalLM(config), {
        "input_ids": prompts((6, 6))["input_ids"],
        "use_cache": False,
    }


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
IMAGE = {"image_size": 4, "patch_size": 2}


def vit():
    return t.ViTModel(t.ViTConfig(**SMALL, **IMAGE)), {"pixel_values": torch.randn(2, 3, 4, 4)}


def blip():
    text = {**SMALL, "vocab_size": 60, "encoder_hidden_size": 16, "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2}
    network = t.BlipForConditionalGeneration(
        t.BlipConfig(text_config=text, vision_config={**SMALL, **IMAGE})
    )
    return network, {**prompts((6, 6)), "pixel_values": torch.randn(2, 3, 4, 4)}


@pytest.mark.parametrize(
    ("maker", "path", "side", "shape"),
    [
        (mamba, "backbone.layers.0", "output", (2, 6, 16)),
        (mamba, "backbone.layers.1.mixer", "input", (2, 6, 16)),
        (mamba, "backbone.layers.1.mixer.in_proj", "output", (2, 6, 64)),
        (vit, "embeddings.patch_embeddings.projection", "output", (2, 4, 16)),
        (vit, "layers.0", "output", (2, 5, 16)),
        (blip, "vision_model.encoder.layers.0", "output", (2, 5, 16)),
        (blip, "text_decoder.bert.encoder.layer.0", "output", (2, 6, 16)),
        (blip, "text_decoder.bert.encoder.layer.1.crossattention", "output", (2, 6, 16)),
    ],
)
def test_other_networks_have_modules(maker, path, side, shape):
    torch.manual_seed(shifted(0))
    network, inputs = maker()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    found, before, after = read_and_zero(network.eval(), Site(module=path, side=side), **inputs)
    assert found.shape == shape
    assert not torch.allclose(before[0], after[0], atol=1e-5)


class HookPoint(nn.Identity):
    """As in TransformerLens: does nothing, and is hooked."""


class Lens(nn.Module):
    """One block with TransformerLens's hook points, shapes and names; its own attention, written
    out.
    """

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([nn.Module()])
        block = self.blocks[0]
        block.attn, block.hook_resid_post = nn.Module(), HookPoint()
        block.attn.qkv, block.attn.out = nn.Linear(8, 24), nn.Linear(8, 8)
        for name in ("hook_z", "hook_pattern"):
            setattr(block.attn, name, HookPoint())
        self.unembed = nn.Linear(8, 20)

    def forward(self, input):
        h, attn = self.embed(input), self.blocks[0].attn
        q, k, v = attn.qkv(h).unflatten(-1, (3, 2, 4)).unbind(2)
        seen = torch.ones(h.shape[1], h.shape[1]).tril().bool()
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(~seen, -1e9)
        # [batch, pos, head, d_head]
        z = attn.hook_z(torch.einsum("bhqk,bkhd->bqhd", attn.hook_pattern(scores.softmax(-1)), v))
        return self.unembed(self.blocks[0].hook_resid_post(h + attn.out(z.flatten(2))))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("blocks.0.hook_resid_post", (2, 5, 8)),
        ("blocks.0.attn.hook_z", (2, 5, 8)),
        ("blocks.0.attn.hook_pattern", (2, 5, 10)),
    ],
)
def test_hook_points_of_transformer_lens(path, shape):
    """Four dimensions are positions and heads, or for attention patterns heads and positions; never
    pixels.
    """
    torch.manual_seed(shifted(0))
    network, base, source = (
        Lens().requires_grad_(False),
        torch.randint(20, (2, 5)),
        torch.randint(20, (2, 5)),
    )
    site = Site(module=path, position=3)
    assert iit.capture(network, source, Site(module=path))[Site(module=path)].shape == shape
    held = []
    handle = network.get_submodule(path).register_forward_hook(lambda m, a, out: held.append(out))
    network(source)
    handle.remove()

    def patch(m, args, out):
        new = out.clone()
        at = (slice(None), slice(None), 3) if path.endswith("pattern") else (slice(None), 3)
        new[at] = held[0][at]
        return new

    handle = network.get_submodule(path).register_forward_hook(patch)
    expected = network(base)
    handle.remove()
    found = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})(
        {"input": base}, {"input": source}
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, network(base))


def test_four_dimensions_without_convolutions_are_not_taken_for_pixels():
    """Qwen 3's norm of queries sees [batch, position, head, width], Gemma 3's [batch, head,
    position, width].
    """
    for family in ("qwen3", "gemma3"):
        with pytest.raises(
            ValueError, match=r"shape \(2, \d, \d, 6\) do not say which dimension .* the positions"
        ):
            iit.capture(
                make(family), prompts((7, 7)), Site(module="model.layers.0.self_attn.q_norm")
            )


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("opt", "model.decoder.layers.1.fc1"),
        ("mixtral", "model.layers.1.mlp.experts"),
        ("qwen3_moe", "model.layers.1.mlp.experts"),
    ],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_modules_that_see_tokens_without_their_batch(family, path, side):
    """Experts are one module with fused weights: what goes in and what comes out together can be
    edited, one expert cannot.
    """
    network, base, source = make(family), prompts((6, 6), 1), prompts((6, 6), 2)
    site, module, held = Site(module=path, side=side, position=2), network.get_submodule(path), []

    def edit(tensor, value=None):
        new = tensor.unflatten(0, (2, 6)).clone() if tensor.ndim == 2 else tensor.clone()
        if value is None:
            held.append(new)
            return tensor
        new[:, 2] = value[:, 2]
        return new.flatten(0, 1) if tensor.ndim == 2 else new

    def hook(value=None):
        if side == "output":
            return module.register_forward_hook(lambda m, args, out: edit(out, value))
        return module.register_forward_pre_hook(lambda m, args: (edit(args[0], value), *args[1:]))

    handle = hook()
    network(**source)
    handle.remove()
    handle = hook(held[0])
    expected = network(**base).logits
    handle.remove()
    torch.testing.assert_close(iit.capture(network, source, site)[site], held[0][:, 2:3])
    found = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})(base, source).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, network(**base).logits, atol=1e-3)


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, input_ids):
        return self.inner(nn.functional.one_hot(input_ids, 3).float().flatten(0, 1)).unflatten(
            0, input_ids.shape
        )


def test_rows_of_ones_own_modules_are_tokens():
    inputs, site = (
        {"input_ids": torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])},
        Site(module="inner", position=[1, 3]),
    )
    network = Merged()
    expected = network(**inputs)
    torch.testing.assert_close(iit.capture(network, inputs, site)[site], expected[:, [1, 3]])
    expected[:, [1, 3]] = 0
    torch.testing.assert_close(
        iit.IntervenedModel(network, {site: iit.ZeroIntervention()})(inputs), expected
    )


def test_steps_of_a_one_dimensional_convolution_are_positions():
    network, x = (
        nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 2, 1)),
        torch.randn(2, 3, 8),
    )
    site = Site(module="0", position=6)
    expected = network[0](x)
    torch.testing.assert_close(
        iit.capture(network, x, site)[site], expected[:, :, [6]].transpose(1, 2)
    )
    expected[:, :, 6] = 0
    edited = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})
    torch.testing.assert_close(edited(x), network[1:](expected))


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0])


def test_what_does_not_say_its_layout_is_refused():
    x = torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match="do not say which dimension has the batch"):
        iit.capture(SequenceFirst(), x, Site(module="head", position=0))
    network = SequenceFirst()
    assert iit.capture(network, x, Site(module="gru"))[Site(module="gru")].shape == (2, 5, 4)
    channels = nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"do not say which dimension .* the positions"):
        iit.capture(channels, torch.randn(2, 3, 5), Site(module="1", position=0))


def test_what_is_also_the_residual_stream_is_no_input():
    network = make("bloom")
    network.config.apply_residual_connection_post_layernorm = True
    for component in ("attention_input", "mlp_input"):
        with pytest.raises(ValueError, match="norm whose output is the residual stream, too"):
            iit.IntervenedModel(network, {Site(component, layer=0): iit.ZeroIntervention()})


def test_run_keeps_sites_of_one_width_together(tiny_llama):
    sites = [Site("block_output", layer=0, position=0), Site("mlp_activation", layer=0, position=0)]
    edited = iit.IntervenedModel(tiny_llama, {"x": iit.Edit(sites, iit.ZeroIntervention())})
    with pytest.raises(ValueError, match="differ in width"):
        edited.run(prompts((4, 4)))
