"""How far edited activations are from natural ones."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset

import iit
from iit.data import EncodedPairs
from iit.evaluation.divergence import divergence
from iit.intervened import ActivationStore
from iit.network import Classifier
from tests.evaluation.test_illusion import ILLUSION, around, fixed, table

HERE = iit.Site(module="encode")


class Plain(torch.nn.Module):
    """Its activation is its input."""

    def __init__(self):
        super().__init__()
        self.encode, self.head = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
        torch.nn.init.eye_(self.encode.weight)

    def forward(self, x):
        return self.head(self.encode(x))


def encoded(network, base, source, **columns):
    n = len(base)
    given = {"base": base, "source": source, "label": [0] * n, "changing": [False] * n}
    return EncodedPairs(Dataset.from_dict(given | columns), "v", network)


def on(network, site, intervention, variable="v"):
    return iit.Alignment(network, {variable: iit.Edit(site, intervention)})


def test_figures_by_hand():
    network = Classifier(Plain())
    natural = encoded(network, [[0.0, 0.0], [4.0, 0.0]], [[0.0, 4.0], [4.0, 4.0]])
    # Unedited, the bases are 1, 2 and 3 from the nearest corner: 95% of them are within 2.9.
    pairs = encoded(
        network, [[0.0, 1.0], [6.0, 0.0], [4.0, 7.0]], [[2.0, 0.0], [9.0, 9.0], [4.0, -1.0]]
    )
    swap_second = on(network, HERE, iit.VanillaIntervention(2, units=[1]))
    # Edited they are (0, 0), (6, 9) and (4, -1).
    np.testing.assert_allclose(
        divergence(swap_second, pairs, natural), [0, (4 + 25) ** 0.5 / 2.9, 1 / 2.9], rtol=1e-6
    )
    whole = on(network, HERE, iit.VanillaIntervention())
    np.testing.assert_allclose(
        divergence(whole, pairs, natural), [2 / 2.9, 50**0.5 / 2.9, 1 / 2.9], rtol=1e-6
    )
    shifted = on(network, HERE, iit.AdditionIntervention(torch.tensor([0.0, 2.0])))
    # Without a source the sources (0, 4) and (4, 4) are not among the natural ones; the edited are
    # (0, 3), (6, 2), (4, 9).
    far = np.array([3, 8**0.5, 9]) / np.quantile([1, 2, 7], 0.95)
    np.testing.assert_allclose(divergence(shifted, pairs, natural), far, rtol=1e-6)


def test_several_sites_and_positions_count_by_the_farthest():
    network = Classifier(Plain())
    natural = encoded(network, [[0.0, 0.0]], [[0.0, 0.0]])
    pairs = encoded(
        network, [[0.0, 1.0], [0.0, 2.0], [3.0, 0.0]], [[0.0, 5.0], [1.0, 0.0], [0.0, 0.0]]
    )
    single = divergence(on(network, HERE, iit.VanillaIntervention()), pairs, natural)
    np.testing.assert_allclose(single, [5 / 2.9, 1 / 2.9, 0])
    below = iit.Site(module="head", side="input")
    two = iit.Edit([below, HERE], iit.VanillaIntervention(2, units=[1]))
    edited = divergence(iit.Alignment(network, {"v": two}), pairs, natural)
    np.testing.assert_allclose(edited, [5 / 2.9, 0, 3 / 2.9])


def test_where_natural_activations_repeat_the_scale_is_small_but_there_is_one():
    network = Classifier(Plain())
    corners = [[0.0, 0.0], [4.0, 0.0]]
    pairs = encoded(network, corners, corners[::-1])
    assert (divergence(on(network, HERE, iit.VanillaIntervention()), pairs, pairs) == 0).all()
    off = divergence(
        on(network, HERE, iit.AdditionIntervention(torch.tensor([0.0, 2.0]))), pairs, pairs
    )
    np.testing.assert_allclose(off, [1e6, 1e6], rtol=1e-5)  # 2, in units of 1e-6 of the mean norm 2
    nothing = encoded(network, [[0.0, 0.0]], [[0.0, 0.0]])
    assert (divergence(on(network, HERE, iit.VanillaIntervention()), nothing, nothing) == 0).all()


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("position", ["place", None, [0, -1]])
def test_a_source_that_is_the_base_leaves_the_bases_own_figure(toy, position, batch_size):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position=position)

    def identical(split):
        given = pairs.split(split)
        same = given.remove_columns(["source", "source_roles"])
        same = same.add_column("source", given["base"]).add_column(
            "source_roles", given["base_roles"]
        )
        return EncodedPairs(same, pairs.variables, network)

    same = identical("test")
    # Spans of different length cannot be interchanged: where every position is edited, source and
    # base are one.
    train = (
        identical("train")
        if position is None
        else EncodedPairs(pairs.split("train"), pairs.variables, network)
    )
    alignment = on(network, site, iit.LowRankRotatedSpaceIntervention(16, 3), "subject_position")
    alignment.store = ActivationStore(network.model)
    found = divergence(alignment, same, train, batch_size=batch_size)

    def rows(batch):
        acts = iit.capture(network, batch, [site])
        return [row[:n] for row, n in zip(acts[site], acts.counts[site].tolist(), strict=True)]

    whole = train.batch(range(len(train)))
    natural = torch.cat([*rows(whole["base"]), *rows(whole["sources"]["subject_position"])])
    own = [
        torch.cdist(row, natural).min(1).values.max()
        for row in rows(same.batch(range(len(same)))["base"])
    ]
    own = torch.stack(own).numpy()
    np.testing.assert_allclose(found, own / np.quantile(own, 0.95), rtol=2e-3, atol=1e-4)
    assert (found > 1 + 1e-6).mean() < 0.2


def test_an_illusion_leaves_what_is_natural_and_vanilla_patching_does_not():
    network = around()
    pairs, natural = (EncodedPairs(table(seed=seed), "sign", network) for seed in (0, 1))
    illusion = divergence(on(network, HERE, fixed(ILLUSION), "sign"), pairs, natural)
    vanilla = divergence(on(network, HERE, iit.VanillaIntervention(), "sign"), pairs, natural)
    changing = pairs.changing.numpy()
    assert (vanilla > 1).mean() < 0.2
    assert illusion[changing].min() > 100
    assert (illusion[~changing] > 1).mean() < 0.3


@pytest.mark.parametrize("blocks", [False, True])
def test_pairs_that_an_edit_leaves_alone_do_not_count_for_it(blocks):
    network = Classifier(Plain())
    if blocks:
        rotation = iit.RotatedSpaceIntervention(2, blocks={"a": 1, "b": 1})
        with torch.no_grad():
            rotation.basis.weight.copy_(torch.eye(2))
        alignment = iit.Alignment(network, {"both": iit.Edit(HERE, rotation)})
    else:
        edits = {
            name: iit.Edit(HERE, iit.VanillaIntervention(2, units=[unit]))
            for unit, name in enumerate("ab")
        }
        alignment = iit.Alignment(network, edits)

    def both(base, one, other, interchanged):
        n = len(base)
        columns = {"base": base, "source[a]": one, "source[b]": other, "interchanged": interchanged}
        return EncodedPairs(
            Dataset.from_dict(columns | {"label": [0] * n, "changing": [False] * n}),
            ("a", "b"),
            network,
        )

    natural = both(
        [[0.0, 0.0]] * 2, [[0.0, 0.0], [0.0, 8.0]], [[50.0, 0.0], [0.0, 0.0]], [["a"], ["b"]]
    )
    pairs = both(
        [[0.0, 2.0], [2.0, 0.0], [0.0, 2.0], [7.0, 7.0]],
        [[6.0, 9.0]] * 4,
        [[9.0, 5.0]] * 4,
        [["a"], ["b"], ["a", "b"], []],
    )
    # Only (0, 0) is natural, as inactive sources are not read, and unedited activations are 2 from
    # it.
    both_at_once = 61 if blocks else 40  # (6, 5); each edit by itself: (6, 2) and (0, 5)
    np.testing.assert_allclose(
        divergence(alignment, pairs, natural),
        [40**0.5 / 2, 29**0.5 / 2, both_at_once**0.5 / 2, 1],
        rtol=1e-6,
    )


def test_what_has_no_natural_counterpart_is_refused():
    network = Classifier(Plain())
    columns = {
        "source[a]": [[1.0, 1.0]],
        "source[b]": [[2.0, 2.0]],
        "label": [0],
        "changing": [False],
        "base": [[3.0, 0.0]],
    }
    of = {
        name: EncodedPairs(
            Dataset.from_dict(columns | {"interchanged": [[name]]}), ("a", "b"), network
        )
        for name in ("a", "b")
    }
    alignment = iit.Alignment(
        network, {name: iit.Edit(HERE, iit.VanillaIntervention()) for name in ("a", "b")}
    )
    assert divergence(alignment, of["a"], of["a"]).shape == (1,)
    with pytest.raises(ValueError, match="None of the natural pairs interchanges a"):
        divergence(alignment, of["a"], of["b"])


def test_attention_weights_have_no_distances(toy):
    network, pairs = toy
    train = EncodedPairs(pairs.split("train"), pairs.variables, network)
    network.model.set_attn_implementation("eager")
    try:
        weights = on(
            network,
            iit.Site("attention_weight", layer=0),
            iit.VanillaIntervention(),
            "subject_position",
        )
    finally:
        network.model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="Attention weights"):
        divergence(weights, train, train)


def test_only_the_first_natural_activations_count_whatever_the_batch_size(monkeypatch):
    monkeypatch.setattr(sys.modules["iit.evaluation.divergence"], "N_NATURAL", 3)
    network = Classifier(Plain())
    natural = encoded(
        network, [[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]], [[0.0, 4.0], [4.0, 4.0], [9.0, 9.0]]
    )
    pairs = encoded(network, [[0.0, 1.0]] * 2, [[4.0, 4.0], [9.0, 9.0]])
    alignment = on(network, HERE, iit.VanillaIntervention())
    for batch_size in (1, 2, 64):
        # Of (0, 0), (0, 4) and (4, 0): 4 from the first source, √106 from the second.
        found = divergence(alignment, pairs, natural, batch_size=batch_size)
        np.testing.assert_allclose(found, [4, 106**0.5], rtol=1e-6)
