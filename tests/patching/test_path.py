"""Path patching equals frozen runs with raw hooks."""

import numpy as np
import pytest
import torch

import iit
from iit.patching import patch, path_patch
from tests.oracles import ORACLES, head_columns
from tests.patching.contrasts import (
    contrast,
    difference,
    inputs,
    last_logits,
    raw_activation,
    swapped,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
HEAD = "attention_value_output"
N_BLOCKS = 2


def first_run(found, family, layer, head, position, through):
    """The hooks of the run in which the sender has the source's value and later writes the
    base's.
    """
    columns = head_columns(family, HEAD, head)
    theirs = raw_activation(found.network, family, HEAD, layer, found.source, columns)
    hooks = [(family, HEAD, layer, columns, swapped(theirs, position))]
    for name, start in (("attention", layer + 1), ("mlp", layer)):
        for block in range(start, N_BLOCKS) if name not in through else ():
            component = f"{name}_write"
            own = raw_activation(found.network, family, component, block, found.base)
            hooks.append((family, component, block, ORACLES[family][component][2], swapped(own)))
    return hooks


def by_hand(found, family, layer, head, position, receiver, through=()):
    hooks = first_run(found, family, layer, head, position, through)
    if receiver is None:
        return difference(last_logits(found.network, found.base, hooks), found)
    component, block, columns, at = receiver
    seen = []
    reader = (
        family,
        component,
        block,
        columns,
        lambda activation: seen.append(activation.clone()) or activation,
    )
    last_logits(found.network, found.base, [*hooks, reader])
    return difference(
        last_logits(
            found.network, found.base, [(family, component, block, columns, swapped(seen[0], at))]
        ),
        found,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("through", [(), ("mlp",), ("attention", "mlp")])
@pytest.mark.parametrize("kind", [None, "query_output", "key_output", "value_output", "mlp_input"])
def test_each_head_by_each_way(family, through, kind):
    found = contrast(family, lengths=(7, 7))
    head = 1 if kind in ("query_output", "key_output", "value_output") else None
    # What a sender at `a` writes is read, in the block above, as a key or a value.
    role, at = ("a", 1) if kind in ("key_output", "value_output") else ("last", 6)
    receiver = None if kind is None else iit.Site(kind, layer=1, head=head, position=role)
    effects = path_patch(
        found.network,
        found,
        [] if receiver is None else receiver,
        positions=[role],
        through=through,
    )
    senders = {(cell.site.layer, cell.site.head) for cell in effects.cells}
    assert senders == {
        (layer, h) for layer in range(2 if kind in (None, "mlp_input") else 1) for h in range(4)
    }
    columns = (
        ORACLES[family][kind][2]
        if kind == "mlp_input"
        else None
        if kind is None
        else head_columns(family, kind, 1)
    )
    raw = None if kind is None else (kind, 1, columns, at)
    for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
        expected = by_hand(found, family, cell.site.layer, cell.site.head, at, raw, through)
        np.testing.assert_allclose(values, expected, **CLOSE, err_msg=str(cell))
    assert (
        np.abs(effects.of("logit_difference") - effects.unedited["logit_difference"]).max() > 1e-4
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_all_paths_are_activation_patching(family):
    found = contrast(family)
    options = {"components": HEAD, "heads": "all", "positions": ["a", "last", None]}
    paths = path_patch(found.network, found, through=("attention", "mlp"), **options)
    whole = patch(found.network, found, **options)
    assert paths.cells == whole.cells
    np.testing.assert_allclose(paths.of("logit_difference"), whole.of("logit_difference"), **CLOSE)
    assert np.abs(whole.of("logit_difference") - whole.unedited["logit_difference"]).max() > 0.1


def test_a_path_inside_one_token():
    """Sender and receiver at one token, and the answer read there: every way has an effect, direct
    ones differ from whole ones.
    """
    found = contrast("llama")  # of prompts that end at different tokens
    site = iit.Site("query_output", layer=1, head=2, position="last")
    direct, by_mlp = (
        path_patch(found.network, found, site, through=t).of("logit_difference")
        for t in ((), ("mlp",))
    )
    base = direct - path_patch(found.network, found, site).unedited["logit_difference"]
    assert np.abs(base).max() > 1e-4
    assert np.abs(direct - by_mlp).max() > 1e-4
    to_logits = path_patch(found.network, found)
    for cell, values in zip(to_logits.cells, to_logits.of("logit_difference"), strict=True):
        each = [by_hand(found, "llama", cell.site.layer, cell.site.head, at, None) for at in (6, 4)]
        np.testing.assert_allclose(values, [each[0][0], each[1][1]], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_receiver_at_every_position_of_prompts_of_many_lengths(family):
    """What a batch's first rows see is shorter than what all of them do, and is checked by
    itself.
    """
    found, site = (
        contrast(family, lengths=(7, 5, 9, 6, 8, 10, 7, 7)),
        iit.Site("mlp_input", layer=1, position=None),
    )
    options = {"components": "mlp_output", "heads": None, "layers": [0], "positions": ["a"]}
    together = path_patch(found.network, found, site, **options).of("logit_difference")
    by_one = path_patch(found.network, found, site, batch_size=1, **options).of("logit_difference")
    np.testing.assert_allclose(together, by_one, **CLOSE)


def test_what_cannot_be_a_path():
    found = contrast("llama")
    late = iit.Site("query_output", layer=0, head=1, position="last")
    with pytest.raises(ValueError, match="lies before none of the receivers query_output"):
        path_patch(found.network, found, late)
    with pytest.raises(ValueError, match="'magic' is none of attention, mlp"):
        path_patch(found.network, found, through=["magic"])
    with pytest.raises(ValueError, match="is no component"):
        path_patch(found.network, found, iit.Site(module="model.layers.1.mlp", position="last"))
    several = contrast("llama", width=2)
    with pytest.raises(ValueError, match="several tokens"):
        path_patch(several.network, several)
    before = inputs(found.base)
    assert torch.equal(before["input_ids"], found.base["input_ids"])
