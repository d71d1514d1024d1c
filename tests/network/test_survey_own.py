"""Components of networks that somebody wrote for themselves: wrong places are refused."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import iit
from iit import Site
from iit.network.survey import survey
from iit.site import resolve
from tests import zoo

IDS = torch.tensor([[11, 23, 35, 47, 59, 71]])
ORDER = {"as they are": [0, 1, 2, 3], "middle heads swapped": [0, 2, 1, 3], "by unit": None}


class Config(PreTrainedConfig):
    model_type = "of_ones_own"


class Attention(nn.Module):
    def __init__(self, order, is_normed):
        super().__init__()
        self.num_heads, self.order = 4, order
        # Whether neighbouring units belong to different heads.
        self.by_unit = order is None
        self.norm = nn.LayerNorm(32) if is_normed else nn.Identity()
        self.q_proj, self.k_proj = nn.Linear(32, 32), nn.Linear(32, 32)
        self.v_proj, self.o_proj = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, hidden):
        hidden = self.norm(hidden)
        query, key, value = (
            self.heads(projection(hidden)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        future = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).triu(1)
        scores = (query @ key.transpose(2, 3)).masked_fill(future, float("-inf"))
        heads = scores.softmax(-1) @ value[:, self.order or slice(None)]
        heads = heads.transpose(1, 2)
        if self.by_unit:
            heads = heads.transpose(2, 3)
        return self.o_proj(heads.reshape(hidden.shape))

    def heads(self, units):
        if self.by_unit:
            return units.view(*units.shape[:2], 8, 4).permute(0, 3, 1, 2)
        return units.view(*units.shape[:2], 4, 8).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, scale, order, is_normed):
        super().__init__()
        self.scale = scale
        self.norm = nn.Identity() if is_normed else nn.LayerNorm(32)
        self.attention = Attention(order, is_normed)

    def forward(self, hidden):
        return hidden + self.scale * self.attention(self.norm(hidden))


class Own(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config, scale=1.0, order="as they are", is_normed=False):
        super().__init__(config)
        self.embed = nn.Embedding(96, 32)
        self.layers = nn.ModuleList(Block(scale, ORDER[order], is_normed) for _ in range(2))
        # Its path begins as the path of the blocks does.
        self.layers_dropout = nn.Dropout(0.1)
        self.layers_norm, self.head = nn.LayerNorm(32), nn.Linear(32, 96)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for block in self.layers:
            hidden = block(hidden)
        hidden = self.layers_norm(self.layers_dropout(hidden))
        return CausalLMOutput(logits=self.head(hidden))


def own(config=None, **options):
    torch.manual_seed(0)
    network = Own(config or Config(), **options).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    return network


def test_own_network_has_components():
    # Its config says neither its width nor its vocabulary.
    known = survey(own())
    assert known.places[None]["final_norm_output"].module == "layers_norm"
    assert known.places[None]["embedding_output"].width == 32
    for name in ("query_output", "key_output", "value_output", "attention_input"):
        assert not isinstance(known.places[1][name], str)
    assert known.places[1]["attention_write"].module == "layers.1.attention.o_proj"


def test_own_network_with_the_config_of_a_listed_family():
    known = survey(own(LlamaConfig(hidden_size=32, num_attention_heads=4, vocab_size=96)))
    assert not known.is_listed
    assert known.places[1]["query_output"].module == "layers.1.attention.q_proj"


def test_network_that_does_not_say_how_many_heads_it_has():
    network = own()
    for block in network.layers:
        del block.attention.num_heads
    places = survey(network).places[1]
    assert "how many heads" in places["query_output"]
    assert not isinstance(places["attention_output"], str)


def test_heads_in_another_order_are_refused():
    places = survey(own(order="middle heads swapped")).places[1]
    assert "its head 2 is changed" in places["value_output"]


def test_input_before_a_norm_inside_the_attention_is_refused():
    places = survey(own(is_normed=True)).places[1]
    assert "norm" in places["attention_input"]
    assert not isinstance(places["query_output"], str)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scaled_write_is_refused_beside_a_stream_that_is_far_larger(scale):
    network = own(scale=scale)
    with torch.no_grad():
        network.embed.weight.mul_(1e4)
        for block in network.layers:
            block.attention.o_proj.weight.mul_(0.01)
            block.attention.o_proj.bias.zero_()
    assert isinstance(survey(network).places[1]["attention_write"], str) == (scale != 1.0)


def test_mixer_is_no_mlp_in_half_precision():
    places = survey(zoo.make("mamba").bfloat16()).places
    for layer in range(4):
        for name in ("mlp_input", "mlp_output", "mlp_activation", "mlp_write"):
            assert isinstance(places[layer][name], str)


def test_heads_that_nothing_shows_are_refused():
    network = own(order="by unit")
    iit.capture(network, {"input_ids": IDS}, [Site("attention_value_output", layer=1)])
    for component in ("attention_value_output", "value_output"):
        with pytest.raises(ValueError, match=r"heads of .* are not known in block 1"):
            resolve(network, Site(component, layer=1, head=0))
