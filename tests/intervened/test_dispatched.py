"""A network over several devices, or with offloaded weights, computes what it computes on one."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import lightning as L
import pytest
import torch
import transformers as t
from accelerate import cpu_offload, disk_offload
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

import iit
from iit import Edit, Site
from iit.evaluation.illusion import _reader
from iit.intervened import ActivationStore
from iit.intervened.snapshot import NetworkSnapshot
from iit.network import LanguageModel, fingerprint, untrained
from iit.network.components import blocks_of
from iit.patching import Contrast, attribute, patch, trace
from tests.fake_devices import FAR, NEAR, dispatched, fake_devices
from tests.families import SIZES, make, prompts

FAMILIES = ("llama", "gpt2", "gemma2", "bloom")
OFFLOADS = {
    "cpu": lambda network, folder: cpu_offload(network),
    "disk": disk_offload,
    "half": lambda network, folder: dispatched(network, "cpu", "disk", offload_dir=folder),
}
SITES = (
    Site("embedding_output", position="last"),
    Site("block_output", layer=0, position="last"),
    Site("block_input", layer=1, position="last"),
    Site("attention_value_output", layer=1, head=[1, 2]),
    Site("final_norm_output", position=-1),
)
LONG_ON_FAKES = ["half", pytest.param("fake", marks=pytest.mark.long)]
TWO = (Site("block_output", layer=0, position=-1), Site("mlp_output", layer=1, position=-1))


def close(one, other):
    torch.testing.assert_close(one.detach().cpu(), other.detach().cpu(), atol=3e-5, rtol=3e-5)


def alike(plain, network, sites):
    """Edits of the same weights on both networks."""
    edit = partial(iit.LowRankRotatedSpaceIntervention, rank=2)
    width = iit.site.resolve(plain, sites[0]).width
    pair = [iit.IntervenedModel(n, {"v": Edit(sites, edit(width))}) for n in (plain, network)]
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def check_edits(plain, network, device, places=(*((site,) for site in SITES), TWO)):
    """Outputs, gradients and texts under edits, with a store and without, and where they lie."""
    base, source = prompts((7, 5, 7)), prompts((7, 5, 7), seed=3)
    base["answer"] = torch.tensor([[9, 11], [8, -100], [7, 12]])
    flags = {"v": torch.tensor([True, False, True])}
    store = ActivationStore(network)
    for sites in places:
        right, edited = alike(plain, network, sites)
        (weight,), (expected,) = edited.parameters(), right.parameters()
        assert weight.device == edited.resolved[sites[0]].device
        right.answer_logits(base, source, flags).square().mean().backward()
        for edited.store in (None, store):
            weight.grad = None
            logits = edited.answer_logits(base, source, flags)
            assert logits.device == device
            close(logits, right.answer_logits(base, source, flags))
            logits.square().mean().backward()
            assert weight.grad.device == weight.device
            close(weight.grad, expected.grad)
        close(edited(base, source).logits, right(base, source).logits)
        close(edited.run(base, source).activations["v"], right.run(base, source).activations["v"])
        captured = iit.capture(network, base, list(sites))
        for site, activation in iit.capture(plain, base, list(sites)).items():
            close(captured[site], activation)
            assert captured[site].device == device
    del base["answer"]
    texts = [m.generate(base, source, max_new_tokens=3, do_sample=False) for m in (right, edited)]
    assert torch.equal(*(text.cpu() for text in texts))
    (message,) = store._messages
    assert message.startswith("Runs resume")


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "half"),
        *(pytest.param(f, k, marks=pytest.mark.long) for f in FAMILIES for k in OFFLOADS),
    ],
)
def test_edits_of_an_offloaded_network(family, kind, tmp_path):
    plain, network = make(family), OFFLOADS[kind](make(family), str(tmp_path))
    offloaded = [name for name, p in network.named_parameters() if p.is_meta]
    assert offloaded
    snapshot = NetworkSnapshot(network)
    check_edits(plain, network, torch.device("cpu"))
    # accelerate's hooks stay as they were, and are not foreign.
    assert snapshot.change() is None
    assert snapshot.refusal() is None
    assert [name for name, p in network.named_parameters() if p.is_meta] == offloaded
    assert fingerprint(network) == fingerprint(plain) != fingerprint(make(family, seed=5))


def test_edits_over_two_devices():
    plain = make("llama")
    with fake_devices():
        network = dispatched(make("llama"), NEAR, FAR)
        assert {p.device for p in network.parameters()} == {NEAR, FAR}
        check_edits(plain, network, NEAR, [TWO])


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_all_edits_over_two_devices(family):
    plain = make(family)
    with fake_devices():
        network = dispatched(make(family), NEAR, FAR)
        check_edits(plain, network, NEAR)
        base, site = prompts(), Site("block_output", layer=1)
        models = [iit.IntervenedModel(n, {site: iit.SkipIntervention()}) for n in (network, plain)]
        close(*(model.answer_logits(base) for model in models))


def test_the_fake_devices_refuse_to_mix():
    with fake_devices():
        linear = torch.nn.Linear(2, 2).to(FAR)
        with pytest.raises(RuntimeError, match="lie on"):
            linear(torch.ones(1, 2, device=NEAR))


CARDS = torch.cuda.device_count()


@pytest.mark.skipif(not CARDS, reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_over_two_real_devices(family):
    near, far = (0, 1) if CARDS > 1 else (0, "cpu")
    network = dispatched(make(family), near, far)
    check_edits(make(family), network, torch.device("cuda:0"))


@pytest.mark.parametrize("kind", OFFLOADS)
def test_a_vanilla_interchange_equals_raw_hooks(kind, tmp_path):
    network = OFFLOADS[kind](make("llama"), str(tmp_path))
    plain, base, source = make("llama"), prompts((7, 7)), prompts((7, 7), seed=3)
    block = plain.model.layers[1]
    kept = []
    handle = block.register_forward_hook(lambda m, args, output: kept.append(output.clone()))
    plain(**source)
    handle.remove()

    def put(module, args, output):
        output = output.clone()
        output[:, 4] = kept[0][:, 4]
        return output

    handle = block.register_forward_hook(put)
    expected = plain(**base).logits
    handle.remove()
    site = Site("block_output", layer=1, position=4)
    edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
    close(edited(base, source).logits, expected)


@pytest.mark.parametrize("kind", LONG_ON_FAKES)
def test_components_found_by_structure_are_checked(kind, tmp_path):
    config = t.StableLmConfig(**SIZES, num_key_value_heads=2)
    torch.manual_seed(0)
    plain = t.StableLmForCausalLM(config).eval()
    network = deepcopy(plain)
    with fake_devices() if kind == "fake" else nullcontext():
        if kind == "fake":
            network = dispatched(network, NEAR, FAR)
        else:
            network = OFFLOADS[kind](network, str(tmp_path))
        known, right = blocks_of(network), blocks_of(plain)
    assert not known.is_listed
    assert known.places == right.places
    assert known.is_causal == right.is_causal


class _Fake(CPUAccelerator):
    def setup_device(self, device):
        pass


def near(accelerator, devices, **options):
    """A trainer for the fake device."""
    strategy = SingleDeviceStrategy(device=NEAR, accelerator=_Fake())
    return L.Trainer(strategy=strategy, **options)


def alignment_of(network, site, intervention):
    torch.manual_seed(0)
    return iit.Alignment(network, {"subject_position": Edit(site, intervention())})


FRAME = partial(iit.LowRankRotatedSpaceIntervention, 16, 2)
AT_S2 = Site("mlp_output", layer=1, position="s2")
FIT = {"batch_size": 16, "max_epochs": 1}


def placed(kind, model, folder):
    """The network as it is dispatched, and what trains an edit of it."""
    if kind == "fake":
        return dispatched(model, NEAR, FAR), near
    return OFFLOADS[kind](model, str(folder)), L.Trainer


def same_weights(one, other):
    for weight, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight.detach().cpu(), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", LONG_ON_FAKES)
def test_fit_and_evaluate(kind, toy, tmp_path):
    network, pairs = toy
    with fake_devices() if kind == "fake" else nullcontext():
        model, trainer = placed(kind, deepcopy(network.model), tmp_path / "weights")
        other = LanguageModel(model, network.tokenizer)
        right, ours = (alignment_of(n, AT_S2, FRAME) for n in (network, other))
        iit.fit(right, pairs, folder=tmp_path, start="pca", **FIT)
        iit.fit(ours, pairs, folder=tmp_path, start="pca", trainer=trainer, **FIT)
        same_weights(ours, right)
        device = ours.resolved[AT_S2].device
        assert device == (FAR if kind == "fake" else torch.device("cpu"))
        assert {weight.device for weight in ours.parameters()} == {device}
        rows = [iit.evaluate(a, pairs, trust="quick") for a in (ours, right)]
        for row, expected in zip(*rows, strict=True):
            assert (row.control, row.metric) == (expected.control, expected.metric)
            assert row.value == pytest.approx(expected.value, abs=1e-3, nan_ok=True)
        ours.save_pretrained(tmp_path / "saved")
        # A fake tensor has another fingerprint.
        check = kind != "fake"
        loaded = iit.Alignment.from_pretrained(tmp_path / "saved", other, check_network=check)
        assert {weight.device for weight in loaded.parameters()} == {device}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["disk", "fake"])
def test_a_continued_training_and_gates(kind, toy, tmp_path):
    network, pairs = toy
    with fake_devices() if kind == "fake" else nullcontext():
        model, trainer = placed(kind, deepcopy(network.model), tmp_path / "weights")
        other = LanguageModel(model, network.tokenizer)
        trained = []
        for n, trains in ((network, L.Trainer), (other, trainer)):
            options = {**FIT, "folder": tmp_path, "trainer": trains}
            kept = ModelCheckpoint(tmp_path / f"kept{len(trained)}", save_last=True)
            alignment = alignment_of(n, AT_S2, FRAME)
            iit.fit(alignment, pairs, callbacks=[kept], **options)
            options["max_epochs"] = 2
            iit.fit(alignment, pairs, ckpt_path=kept.last_model_path, **options)
            gated = alignment_of(n, AT_S2, partial(iit.BoundlessRotatedSpaceIntervention, 16))
            module = partial(iit.alignment.DAS, penalty=1.0)
            iit.fit(gated, pairs, module=module, **options)
            trained.append((alignment, gated))
        for right, ours in zip(*trained, strict=True):
            same_weights(ours, right)


@pytest.mark.parametrize("kind", LONG_ON_FAKES)
def test_maps(kind, toy, tmp_path):
    network, pairs = toy
    with fake_devices() if kind == "fake" else nullcontext():
        model, _ = placed(kind, deepcopy(network.model), tmp_path)
        other = LanguageModel(model, network.tokenizer)
        for method in (patch, attribute, partial(trace, subject="s2", draws=1)):
            maps = [method(n, Contrast.of(n, pairs)) for n in (network, other)]
            for metric, values in maps[0].values.items():
                close(torch.as_tensor(maps[1].values[metric]), torch.as_tensor(values))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_reads_a_site_is_known_of_an_offloaded_projection(family):
    site = Site("mlp_activation", layer=1)
    close(_reader(cpu_offload(make(family)), site), _reader(make(family), site))


def test_what_a_dispatched_network_cannot_do_is_refused(toy, tmp_path):
    network, pairs = toy
    model = OFFLOADS["half"](deepcopy(network.model), str(tmp_path))
    other = LanguageModel(model, network.tokenizer)
    alignment = alignment_of(other, AT_S2, FRAME)
    ddp = partial(L.Trainer, strategy="ddp", devices=2)
    for options in ({"module": iit.alignment.IIT}, {"trainer": ddp}):
        with pytest.raises(ValueError, match=r"cannot be trained .*one process trains its edits"):
            iit.fit(alignment, pairs, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="is dispatched, offloaded or run elsewhere"):
        untrained(other, keep_ends=True)
    assert not any(p.is_meta for p in untrained(other).model.parameters())
