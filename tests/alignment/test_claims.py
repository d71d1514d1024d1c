"""Claims that cannot be are refused before anything is trained, naming what to change."""

from functools import partial

import lightning as L
import pytest
import torch

import iit
from iit.alignment import (
    DAS,
    IIT,
    CounterfactualLatent,
    CrossEntropy,
    LogitDifference,
    Schedule,
    several,
)
from iit.alignment.overlap import check_declared
from iit.data import Pairs
from iit.evaluation import Trust
from iit.evaluation.controls import controls_of
from iit.evaluation.scoring import Scoring
from iit.network import mlp
from iit.tasks import equality, ioi
from tests.seeds import shifted

SITE = iit.Site(module="layers.1", side="output")
WIDTH = 16


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(shifted(0))
    return mlp(n_inputs=16, n_classes=2, width=WIDTH, depth=2)


@pytest.fixture(scope="module")
def pairs(network):
    return pairs_of(network, ["left_equal", "right_equal"])


def pairs_of(network, variable, **options):
    return Pairs.sample(
        equality(),
        network,
        n_train=48,
        n_val=16,
        n_test=16,
        variable=variable,
        right_only=False,
        **options,
    )


class Untouched(L.Trainer):
    """A trainer that is never to run."""

    def fit(self, *args, **kwargs):
        raise AssertionError("training has begun")


def refused(alignment, pairs, said, **options):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        iit.fit(alignment, pairs, trainer=Untouched, **options)


def units(indices):
    return iit.Edit(SITE, iit.VanillaIntervention(WIDTH, units=indices))


def frame(rank, site=SITE):
    return iit.Edit(site, iit.LowRankRotatedSpaceIntervention(WIDTH, rank))


def autoencoder(features):
    torch.manual_seed(shifted(0))
    weights = {"encoder": torch.randn(WIDTH, 20), "decoder": torch.randn(20, WIDTH)}
    return iit.Edit(SITE, iit.AutoencoderIntervention(WIDTH, 20, features=features, **weights))


SHARED = iit.LowRankRotatedSpaceIntervention(WIDTH, 2)


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (
            units("0:8"),
            units("6:10"),
            (
                "left_equal' and the edit of 'right_equal' overlap at layers.1:output: both "
                "take units 6, 7"
            ),
        ),
        (units("0:8"), iit.Edit(SITE, iit.VanillaIntervention()), "both take units 0, 1"),
        (
            iit.Edit(SITE, iit.VanillaIntervention()),
            iit.Edit(SITE, iit.VanillaIntervention()),
            "both take units",
        ),
        (autoencoder([1, 2]), autoencoder([2, 3]), "both take features 2"),
        (
            iit.Edit(SITE, iit.PCARotatedSpaceIntervention(WIDTH, 2)),
            iit.Edit(SITE, iit.PCARotatedSpaceIntervention(WIDTH, 3)),
            "components 0, 1",
        ),
        (iit.Edit(SITE, SHARED), iit.Edit(SITE, SHARED), "both take coordinates 0, 1"),
        (
            frame(9),
            frame(8),
            r"take 9 \(left_equal\) \+ 8 \(right_equal\) = 17 dimensions of the 16 that are there",
        ),
        (frame(9), units("0:8"), "17 dimensions of the 16"),
        (
            iit.Edit(SITE, iit.VanillaIntervention()),
            iit.Edit(SITE, iit.SigmoidMaskIntervention(WIDTH)),
            "units|dimensions",
        ),
    ],
)
def test_variables_that_overlap_at_one_site_are_refused(network, pairs, left, right, said):
    refused(iit.Alignment(network, {"left_equal": left, "right_equal": right}), pairs, said)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (units("0:8"), units("8:16")),
        (frame(8), frame(8)),
        (frame(8), units("0:8")),
        (autoencoder([1, 2]), autoencoder([3])),
        (
            iit.Edit(SITE, iit.SigmoidMaskIntervention(WIDTH)),
            iit.Edit(SITE, iit.BoundlessRotatedSpaceIntervention(WIDTH)),
        ),
        (frame(16), frame(16, iit.Site(module="layers.0", side="output"))),
        (
            frame(16),
            iit.Edit(iit.Site(module="layers.1.1", side="input"), iit.VanillaIntervention()),
        ),
    ],
)
def test_variables_that_keep_apart_are_not(network, left, right):
    iit.Alignment(network, {"left_equal": left, "right_equal": right}).check_apart()


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("place", "last", None),
        ("place", ["place", "last"], "units"),
        (None, 3, "units"),
        ([1, 2], 2, "units"),
        (1, 2, None),
    ],
)
def test_edits_overlap_where_their_positions_do(toy, one, other, said):
    whole, _ = toy
    sites = [iit.Site("block_output", layer=0, position=position) for position in (one, other)]
    claim = iit.Alignment(
        whole,
        {
            name: iit.Edit(site, iit.VanillaIntervention())
            for name, site in zip("ab", sites, strict=True)
        },
    )
    if said is None:
        claim.check_apart()
    else:
        with pytest.raises(ValueError, match=said):
            claim.check_apart()


def test_ranks_add_up_where_edits_meet_and_no_further(toy):
    whole, _ = toy

    def of(rank, position):
        return iit.Edit(
            iit.Site("block_output", layer=0, position=position),
            iit.LowRankRotatedSpaceIntervention(16, rank),
        )

    iit.Alignment(whole, {"a": of(6, 1), "b": of(6, 2), "both": of(10, [1, 2])}).check_apart()
    with pytest.raises(ValueError, match=r"6 \(b\) \+ 11 \(both\) = 17"):
        iit.Alignment(whole, {"a": of(5, 1), "b": of(6, 2), "both": of(11, [1, 2])}).check_apart()
    with pytest.raises(ValueError, match=r"6 \(a\) \+ 6 \(b\) \+ 6 \(c\) = 18"):
        iit.Alignment(whole, {"a": of(6, 1), "b": of(6, None), "c": of(6, 1)}).check_apart()


def test_heads_share_units_where_they_are_the_same_heads(toy):
    network, _ = toy

    def of(head):
        return iit.Edit(
            iit.Site("attention_value_output", layer=0, head=head, position="last"),
            iit.VanillaIntervention(),
        )

    iit.Alignment(network, {"a": of(0), "b": of(1)}).check_apart()
    with pytest.raises(ValueError, match="both take units"):
        iit.Alignment(network, {"a": of(0), "b": of([0, 1])}).check_apart()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            units("0:4"),
            (
                "edit of 'left_equal' and the inert part 'rest' overlap at layers.1:output: both "
                "take units 0, 1, 2, 3"
            ),
        ),
        (units("3:9"), "both take units 3"),
        (iit.Edit(SITE, iit.VanillaIntervention()), "both take units"),
        (units("5:16"), None),
    ],
)
def test_inert_parts_that_overlap_a_variable_are_refused(network, pairs, part, said):
    claim = iit.Alignment(
        network, {"left_equal": units("0:4"), "right_equal": units([4])}, inert={"rest": part}
    )
    if said is None:
        claim.check_apart()
    else:
        refused(claim, pairs, said, module=IIT)


def test_a_complement_is_inert_beside_its_own_variable_alone(network):
    mine, other = frame(4), frame(4)
    inert = {
        "rest": iit.Edit(SITE, mine.intervention.complement()),
        "again": iit.Edit(SITE, mine.intervention.complement()),
    }
    iit.Alignment(network, {"left_equal": mine}, inert=inert).check_apart()
    with pytest.raises(
        ValueError,
        match=r"4 \(left_equal\) \+ 4 \(right_equal\) \+ 12 \(rest\) = 20 dimensions of the 16",
    ):
        iit.Alignment(
            network, {"left_equal": mine, "right_equal": other}, inert=inert
        ).check_apart()


def test_units_that_overlap_in_a_config_are_refused_without_a_network(network):
    def part(units):
        return {
            "site": iit.Site(module="layers.1.0", side="output"),
            "intervention": partial(iit.VanillaIntervention, units=units),
        }

    check_declared(
        {"a": part("0:4"), "b": part([4, 5])},
        {"rest": part("6:16"), "beside": {"complement_of": "a"}},
    )
    for edits, inert in (
        ({"a": part("0:4"), "b": part([3])}, None),
        ({"a": part("0:4")}, {"rest": part("2:9")}),
    ):
        with pytest.raises(ValueError, match="overlap at"):
            check_declared(edits, inert)
        with pytest.raises(ValueError, match="overlap at"):
            several(network, edits, inert)


def test_a_wrong_site_where_variables_would_overlap_is_left_out_and_told(toy):
    network = toy[0]
    names = ["subject_position", "io_name"]
    pairs = Pairs.sample(
        ioi(), network, variable=names, n_train=8, n_val=4, n_test=4, right_only=False
    )
    edits = {
        name: iit.Edit(
            iit.Site("block_output", layer=layer, position="place"),
            iit.LowRankRotatedSpaceIntervention(16, 9),
        )
        for layer, name in enumerate(names)
    }
    claim = iit.Alignment(network, edits)
    trust = Trust(full=True, wrong_site={"layer": 1})
    made, missing = controls_of(Scoring(claim, pairs, "test", trust, lambda *args: None))
    assert "wrong_site" not in {arm.control for arm in made}
    assert "18 dimensions of the 16" in missing["wrong_site"]


@pytest.mark.parametrize("column", ["label", "base_answer"])
@pytest.mark.parametrize("answer", [2, -1])
def test_a_class_that_a_network_does_not_have_is_refused(network, column, answer):
    pairs = pairs_of(network, "left_equal")
    wrong = pairs.dataset.map(
        lambda row, i: {column: answer if i == 5 else row[column]}, with_indices=True
    )
    own = Pairs(wrong, ("left_equal",))
    claim = iit.Alignment(network, {"left_equal": frame(2)})
    refused(
        claim,
        own,
        rf"{column}: {answer} \(pair \d+\) is none of the 2 classes that mlp answers with, 0 to 1",
    )
    with pytest.raises(ValueError, match="none of the 2 classes"):
        iit.evaluate(claim, own, split="train", controls=False)


def test_a_label_outside_the_vocabulary_is_refused(toy):
    network, pairs = toy
    with pytest.raises(ValueError, match="' Xylophone' is outside the vocabulary of toy"):
        network.encode(["John gave"], answers=[" Xylophone"])
    claim = iit.Alignment(
        network,
        {"subject_position": iit.Edit(iit.Site("block_output", layer=0, position="last"), SHARED)},
    )
    labelled = pairs.dataset.map(lambda row: {"label": " Xylophone"})
    refused(
        claim, Pairs(labelled, pairs.variable, pairs.task), "' Xylophone' is outside the vocabulary"
    )


def test_numbers_that_cannot_be_are_refused(network):
    gated = iit.Alignment(
        network, {"left_equal": iit.Edit(SITE, iit.SigmoidMaskIntervention(WIDTH))}
    )
    for module in (DAS, IIT):
        for numbers, said in (
            ({"penalty": -0.1}, r"penalty=-0\.1.*cannot be negative"),
            ({"penalty": Schedule(0.0, -1.0)}, "penalty=.*cannot be negative"),
            ({"penalty": float("nan")}, "penalty=nan"),
            ({"temperature": 0.0}, r"temperature=0\.0.*stays above 0"),
            ({"temperature": Schedule(1.0, 0.0)}, "temperature=.*stays above 0"),
        ):
            with pytest.raises(ValueError, match=said):
                module(gated, **numbers)
        parts = {"cause": float("nan")} if module is DAS else {"behaviour": float("inf")}
        with pytest.raises(ValueError, match="weights"):
            module(gated, weights=parts)
    for start, stop in ((float("inf"), 1.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="finite numbers"):
            Schedule(start, stop)
    for start in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share of the coordinates"):
            iit.BoundlessRotatedSpaceIntervention(WIDTH, start=start)


def test_trainings_that_cannot_be_are_refused(network, pairs):
    claim = iit.Alignment(network, {"left_equal": frame(2), "right_equal": frame(3)})
    refused(claim, pairs, "max_epochs=0: training needs an epoch", max_epochs=0)
    refused(
        claim,
        pairs,
        r"trained=\[\] names no variable.*'right_equal'",
        module=partial(IIT, trained=[]),
    )
    without = pairs.dataset.filter(
        lambda row: row["split"] != "validation" or "right_equal" in row["interchanged"]
    )
    said = r"No validation pair that interchanges only \['left_equal'\] is changing"
    refused(
        claim, Pairs(without, pairs.variables), said, module=partial(IIT, trained=["left_equal"])
    )
    with_natural = CounterfactualLatent(CrossEntropy())
    refused(
        claim,
        pairs,
        "CounterfactualLatent.*objective=cross_entropy",
        module=partial(IIT, objective=with_natural),
    )


def test_pairs_that_lack_what_a_loss_reads_are_refused(network, pairs):
    claim = iit.Alignment(network, {"left_equal": frame(2), "right_equal": frame(3)})
    unknown = Pairs(pairs.dataset.remove_columns("base_answer"), pairs.variables)
    refused(
        claim,
        unknown,
        "LogitDifference.*base_answer",
        module=partial(DAS, objective=LogitDifference()),
    )
    refused(claim, unknown, "the column base_answer", module=IIT)
    refused(
        claim,
        unknown,
        r"data\.natural=true",
        module=partial(DAS, objective=CounterfactualLatent(CrossEntropy())),
    )


def test_a_schedule_over_a_training_without_an_end_names_its_key(network, pairs, tmp_path):
    gated = iit.Alignment(
        network, {v: iit.Edit(SITE, iit.SigmoidMaskIntervention(WIDTH)) for v in pairs.variables}
    )
    quiet = partial(L.Trainer, enable_progress_bar=False, enable_model_summary=False)

    class Never(L.Callback):
        def on_train_batch_start(self, *args):
            raise AssertionError("training has begun")

    for numbers, key in (
        ({"temperature": Schedule(1.0, 0.1)}, r"module\.temperature\.steps"),
        ({"weights": {"cause": Schedule(0.0, 1.0)}}, r"module\.weights\.cause\.steps"),
    ):
        with pytest.raises(ValueError, match=f"{key}.*max_epochs"):
            iit.fit(
                gated,
                pairs,
                module=partial(DAS, **numbers),
                trainer=quiet,
                callbacks=[Never()],
                max_epochs=-1,
                folder=tmp_path,
            )
