"""Right by the label, right among the pair's own answers, and a site as a cut, on a network whose
logits are planted.
"""

import numpy as np
import pytest
import torch
from torch import nn

import iit
from iit.data import EncodedPairs, Pairs
from iit.data.table import dataset
from iit.evaluation import outcomes, vanilla
from iit.evaluation.outcomes import _holds_all, cut
from iit.network import Classifier
from iit.result import log_probability
from iit.tasks import ioi

N = 5


class Halves(nn.Module):
    """Logits are the sum of an input's halves, of which the first goes through `site`."""

    def __init__(self):
        super().__init__()
        self.site = nn.Identity()

    def forward(self, x):
        return self.site(x[:, :N]) + x[:, N:]


def spiked(**heights):
    """Logits that are 0 but for these classes (`c3=9`)."""
    return [float(heights.get(f"c{k}", 0)) for k in range(N)]


def table(rows):
    """(base's site, base's rest, source's site, source's rest, label, base's answer, source's
    answer, rival's label) each.
    """
    columns = {
        "split": ["test"] * len(rows),
        "base": [np.array([*row[0], *row[1]], dtype=np.float32) for row in rows],
        "source": [np.array([*row[2], *row[3]], dtype=np.float32) for row in rows],
        "label": [row[4] for row in rows],
        "base_answer": [row[5] for row in rows],
        "source_answer": [row[6] for row in rows],
        "rival_labels": [{"rival": row[7]} for row in rows],
        "changing": [row[4] != row[5] for row in rows],
    }
    return dataset(columns)


def encoded(rows):
    """An alignment of the whole first half, and the rows of `table` as pairs."""
    network = Classifier(Halves(), "halves")
    claim = iit.Alignment(
        network, {"v": iit.Edit(iit.Site(module="site"), iit.VanillaIntervention())}
    )
    return claim, EncodedPairs(table(rows), "v", network)


ZERO = spiked()


@pytest.mark.parametrize(
    ("site", "label", "alternatives", "right", "forced"),
    [
        (spiked(c3=9, c1=3, c2=2), 1, (2, 0, 4), False, 1),  # class 3 is no alternative
        (spiked(c3=9, c1=3, c2=2, c4=5), 1, (2, 0, 4), False, 0),  # the rival's label is above
        (spiked(c3=9, c1=3, c2=4), 1, (2, 0, 0), False, 0),  # the base's answer is
        (spiked(c3=9, c1=3, c0=4), 1, (2, 0, 1), False, 0),  # the source's answer is
        (spiked(c1=3, c2=3), 1, (2, 0, 4), True, 0),  # a tie is not won
        (spiked(c1=3), 1, (1, 1, 4), True, 1),  # an alternative that is the label is none
        (spiked(c1=3), 1, (1, 1, 1), True, None),  # there is no choice
    ],
)
def test_the_label_among_the_pairs_own_answers(site, label, alternatives, right, forced):
    """The source's half is what the edited network answers by."""
    claim, pairs = encoded([(ZERO, ZERO, site, ZERO, label, *alternatives)])
    found = outcomes(claim, pairs)
    assert found.right[None].tolist() == [right]
    assert [None if np.isnan(value) else value for value in found.forced] == [forced]
    own = outcomes(claim, pairs, edited=False)
    assert own.forced[0] == 0 or forced is None, "unedited, all logits are 0: nothing is won"


def test_log_probability_of_all_tokens():
    """p = ½, ¼, ¼ for the first token and ¼, ¼, ½ for the second."""
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]).log() + 7
    for answer, p in (([0, 2], 0.25), ([1, 0], 0.0625), ([2, -100], 0.25)):
        assert log_probability(logits, torch.tensor([answer])).exp().item() == pytest.approx(p)


def test_longer_answers_are_forced_token_by_token(narrow):
    """By hand: each alternative after the prompt, the log-probabilities of its tokens summed; an
    answer that the label begins is none.
    """
    network = narrow
    rows = [
        {"label": " 12", "base_answer": " 7", "source_answer": " 34", "rival": " 129"},
        {"label": " 5", "base_answer": " 34", "source_answer": " 5", "rival": " 51"},
        {"label": " 3", "base_answer": " 34", "source_answer": " 3", "rival": " 3"},
    ]
    columns = {
        name: [row[name] for row in rows] for name in ("label", "base_answer", "source_answer")
    }
    columns |= {
        "split": ["test"] * 3,
        "changing": [True] * 3,
        "base": ["one plus two is"] * 3,
        "source": ["two plus two is"] * 3,
    }
    columns |= {"rival_labels": [{"rival": row["rival"]} for row in rows]}
    columns |= {f"{side}_roles": [{"plus": [4, 8]}] * 3 for side in ("base", "source")}
    pairs = EncodedPairs(dataset(columns), "v", network)
    claim = iit.Alignment(
        network,
        {
            "v": iit.Edit(
                iit.Site("block_output", layer=0, position="plus"), iit.VanillaIntervention()
            )
        },
    )
    prompt = network.tokenizer("one plus two is")["input_ids"]

    def likelihood(answer):
        tokens = network.answer_tokens(["one plus two is"], [answer])[0]
        with torch.no_grad():
            logits = network.model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
        return float(sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(tokens)))

    found = outcomes(claim, pairs, edited=False).forced
    for value, others, row in zip(found, ([" 7", " 34"], [" 34"], []), rows, strict=True):
        best = max(map(likelihood, others), default=None)
        assert np.isnan(value) if best is None else value == float(likelihood(row["label"]) > best)


def test_alternatives_that_end_before_the_site_are_scored_as_the_network_alone_scores_them(narrow):
    """The site is behind all that is read of an answer of one token; label and source's answer have
    two.
    """
    network = narrow
    rows = [{"label": " 12", "base_answer": " one", "source_answer": " 34"}] * 2
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {
        "split": ["test"] * 2,
        "changing": [True] * 2,
        "base": ["one plus two is"] * 2,
        "source": ["two plus two is"] * 2,
    }
    columns |= {"rival_labels": [{"rival": " two"}] * 2}
    pairs = EncodedPairs(dataset(columns), "v", network)
    site = iit.Site("block_output", layer=0, position="answer[0]")
    claim = iit.Alignment(network, {"v": iit.Edit(site, iit.VanillaIntervention())})
    assert pairs.alternatives["base"].shape[1] == pairs.alternatives["rival/rival"].shape[1] == 1
    found, alone = outcomes(claim, pairs), outcomes(claim, pairs, edited=False)
    for name in ("base", "rival/rival"):
        assert found.right[name].tolist() == alone.right[name].tolist()
    assert not np.isnan(found.forced).any()


def test_a_cut_passes_the_sources_answer_and_counts_pairs_whose_answers_differ():
    """A network without tokens has one position: its site holds all, whatever the label is."""
    zero, one = spiked(c0=3), spiked(c1=3)
    claim, pairs = encoded(
        [
            (zero, ZERO, one, ZERO, 1, 0, 1, 1),  # passes
            (zero, spiked(c0=9), one, ZERO, 1, 0, 1, 1),  # the base's other half is read, too
            (zero, ZERO, one, ZERO, 4, 0, 1, 1),  # whatever the label
            (zero, ZERO, zero, ZERO, 1, 0, 0, 1),  # the same answer: it says nothing
        ]
    )
    values = cut(claim, pairs, outcomes(vanilla(claim), pairs))
    assert [None if np.isnan(value) else value for value in values] == [1, 0, 1, None]


def test_a_site_of_one_token_counts_pairs_whose_label_is_the_sources_answer(toy):
    network, _ = toy
    pairs = Pairs.sample(
        ioi(), network, n_train=4, n_val=4, n_test=60, pairs="s2_io_flip", right_only=False
    )
    others = Pairs.sample(
        ioi(), network, n_train=4, n_val=4, n_test=60, pairs="random_names", right_only=False
    )
    cases = [
        ("block_output", pairs, "s2", 1),
        ("block_output", others, "s2", 0),
        ("block_output", others, None, 1),
    ]
    cases.append(("mlp_output", others, None, 0))  # the residual stream passes beside it
    for component, sampled, position, share in cases:
        table = sampled.split("test")
        test = EncodedPairs(table, "subject_position", network)
        site = iit.Site(component, layer=0, position=position)
        claim = iit.Alignment(
            network, {"subject_position": iit.Edit(site, iit.VanillaIntervention())}
        )
        values = cut(claim, test, outcomes(vanilla(claim), test))
        differ = [a != b for a, b in zip(table["source_answer"], table["base_answer"], strict=True)]
        assert np.mean(~np.isnan(values)) == share * np.mean(differ)
        assert np.mean(differ) == 1


def test_a_site_holds_every_token_where_its_roles_are_as_many():
    inputs = {"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])}
    for position, holds in (
        (None, True),
        (("a", "b", "c"), True),
        (("a", "b"), False),
        ("a", False),
        (0, False),
    ):
        assert _holds_all(iit.Site("block_output", layer=0, position=position), inputs) == holds
    assert not _holds_all(iit.Site("attention_value_output", layer=0, head=0), inputs)
    assert not _holds_all(
        iit.Site("block_output", layer=0, position=("a", "b", "c")),
        {"attention_mask": torch.ones(2, 4)},
    )
    assert _holds_all(iit.Site(module="site"), {"x": torch.zeros(2, 3)})
