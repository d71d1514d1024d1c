import warnings

import pytest
import torch

import iit
from tests.families import make, prompts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyvene as pv

pytestmark = pytest.mark.filterwarnings("ignore")
BASE, SOURCE = prompts((6, 6), 1), prompts((6, 6), 2)
WIDTHS = {"mlp_activation": {"gpt2": 64, "llama": 24}}
COMPONENTS = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_activation",
    "mlp_output",
    "attention_input",
    "attention_value_output",
    "attention_output",
    "query_output",
    "key_output",
    "value_output",
)


def saved(folder, net, representations, kinds, *, shake=True):
    """What pyvene saves after its weights have moved from where they start, and the model that it saved."""
    torch.manual_seed(3)
    config = pv.IntervenableConfig([pv.RepresentationConfig(**r) for r in representations], kinds)
    model = pv.IntervenableModel(config, net)
    with torch.no_grad():
        for intervention in model.interventions.values():
            for name, parameter in intervention.named_parameters():
                if shake and name.startswith("rotate_layer"):
                    parameter.add_((0.3 * torch.randn_like(parameter)).tril(-1))  # the diagonal holds signs
    model.save(str(folder))
    return model


def theirs(model, base, source, at_source, at_base, **kwargs):
    """pyvene's logits; locations are lists over representations."""
    locations = {"sources->base": (at_source, at_base)}
    return model(BASE, [SOURCE] * len(model.interventions), locations, **kwargs)[1].logits


def at(*positions):
    return [[list(positions)] * 2]


def spec(component="block_output", **kwargs):
    return {"layer": 1, "component": component, "unit": "pos", "max_number_of_units": 1, **kwargs}


KINDS = {
    "rotated": (pv.RotatedSpaceIntervention, {}),
    "low_rank": (pv.LowRankRotatedSpaceIntervention, {"low_rank_dimension": 3}),
    "vanilla": (pv.VanillaIntervention, {}),
    "addition": (pv.AdditionIntervention, {}),
    "subtraction": (pv.SubtractionIntervention, {}),
    "zero": (pv.ZeroIntervention, {}),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_gives_pyvenes_logits(family, component, tmp_path):
    net = make(family)
    model = (
        saved(tmp_path, net, [spec(component, low_rank_dimension=3)], pv.LowRankRotatedSpaceIntervention)
        if (
            family == "gpt2" or component not in ("key_output", "value_output")  # there pyvene takes the queries' width
        )
        else saved(tmp_path, net, [spec(component)], pv.VanillaIntervention)
    )
    edited = iit.IntervenedModel.from_pyvene(tmp_path, net, [2])
    expected = theirs(model, BASE, SOURCE, at(2), at(2))
    assert not torch.allclose(expected, net(**BASE).logits, atol=1e-2)
    torch.testing.assert_close(edited(BASE, SOURCE).logits, expected, atol=1e-5, rtol=1e-5)
