import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from iit.result import (
    ROW_FIELDS,
    Cell,
    Interval,
    Row,
    clustered_interval,
    correct,
    logit_difference,
    over_seeds,
    read_metrics,
    rows_of,
    select,
    where,
    write_metrics,
)
from tests.seeds import shifted

ROW = Row(
    experiment="e",
    network="n",
    task="t",
    variable="v",
    method="m",
    component="block_output",
    layer=3,
    head=None,
    position="s2",
    rank=4,
    seed=0,
    split="validation",
    subset="changing",
    control=None,
    metric="iia",
    value=0.5,
    low=0.4,
    high=0.6,
    n=10,
)


def test_the_row_has_the_columns_of_the_house():
    identity = "experiment network task variable method component layer head position rank seed"
    assert " ".join(ROW_FIELDS) == f"{identity} split subset control draw metric value low high n"
    assert Row.from_dict(ROW.to_dict()) == ROW
    with pytest.raises(ValueError, match=r"unknown: \['lyer'\], missing: \['layer'\]"):
        Row.from_dict({("lyer" if k == "layer" else k): v for k, v in ROW.to_dict().items()})


@pytest.mark.parametrize(
    ("control", "method", "expected"),
    [
        (None, "m", (None, None, "m")),
        ("vanilla", "m", ("vanilla", None, "m")),
        ("read_part/vanilla", "m", ("read_part/vanilla", None, "m")),
        ("random_subspace", "m", ("random_subspace", None, "m")),
        ("random_subspace/3", "m", ("random_subspace", 3, "m")),
        ("read_part/random_subspace/0", "m", ("read_part/random_subspace", 0, "m")),
        ("seed/2", "m", ("seeds", 2, "m")),
        ("rank/16", "m", ("lower_rank", 16, "m")),
        ("rival/left_only", "m", ("rival", "left_only", "m")),
        ("off_target/io_name", "m", ("off_target", "io_name", "m")),
        (None, "loreft, strength 0.5", (None, 0.5, "loreft")),
    ],
)
def test_a_file_of_the_first_schema_is_read(tmp_path, control, method, expected):
    row = ROW.to_dict() | {"control": control, "method": method}
    del row["draw"]
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"schema": "iit.metrics/1", "facts": {}, "rows": [row]}))
    (read,) = read_metrics(path).rows
    assert (read.control, read.draw, read.method) == expected
    write_metrics(tmp_path, [read])
    assert json.loads(path.read_text())["schema"] == "iit.metrics/2"
    assert read_metrics(path).rows == (read,)


def test_correct_needs_every_token_to_be_the_argmax():
    logits = torch.zeros(3, 2, 5)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 0, 1] = logits[1, 1, 3] = logits[2, 0, 4] = 1
    answer = torch.tensor([[1, 2], [1, 2], [4, -100]])
    assert correct(logits, answer).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="Example 1 has no answer"):
        correct(logits[:2], torch.tensor([[1, 2], [-100, -100]]))


def test_a_nan_is_never_right():
    logits = torch.tensor([[[torch.nan, 0.0]], [[1.0, 0.0]]])
    assert correct(logits, torch.tensor([[0], [0]])).tolist() == [False, True]


def test_interval_covers_the_mean_of_clustered_outcomes():
    """Outcomes that are equal within a cluster: n pairs tell as much as the clusters do."""
    rng, covered, trials = np.random.default_rng(shifted(0)), 0, 300
    for trial in range(trials):
        outcomes = np.repeat(rng.random(60) < 0.3, 5)
        interval = clustered_interval(
            outcomes, np.repeat(np.arange(60), 5), seed=trial, resamples=500
        )
        covered += interval.low <= 0.3 <= interval.high
        assert interval.n == 300
    assert 0.90 <= covered / trials <= 0.98
    naive = clustered_interval(outcomes, np.arange(300))
    assert interval.high - interval.low > 1.5 * (naive.high - naive.low)


@pytest.mark.parametrize(("value", "m"), [(0.0, 1), (1.0, 1), (0.0, 40), (1.0, 40)])
def test_interval_at_the_ends_is_the_exact_binomial_one(value, m):
    interval = clustered_interval(np.full(m, value), np.arange(m))
    reach = 1 - 0.025 ** (1 / m)
    assert interval.value == value
    assert (interval.low, interval.high) == pytest.approx(
        (0.0, reach) if value == 0 else (1 - reach, 1.0)
    )


def test_equal_differences_keep_a_width_on_both_sides():
    interval = clustered_interval(np.zeros(40), np.arange(40), paired=True)
    assert interval.low == -interval.high < 0
    assert clustered_interval(np.zeros(1), np.zeros(1), paired=True)[1:3] == (-1, 1)


@pytest.mark.parametrize("clusters", [[0, 0, 0, 0], [0, 0, 1, 1]])
def test_clusters_of_one_mean_keep_a_width(clusters):
    """Whatever is resampled of them, the mean is the same: the bootstrap alone would claim
    certainty.
    """
    assert clustered_interval([0, 1, 1, 0], clusters) == (0.5, 0.0, 1.0, 4)
    paired = clustered_interval(
        np.tile([-1.0, 1.0], 100), np.repeat(np.arange(100), 2), paired=True
    )
    assert (paired.low, paired.high) == pytest.approx(
        (-2 * (1 - 0.025**0.01), 2 * (1 - 0.025**0.01))
    )


def test_draws_are_averaged_within_a_pair():
    values = np.array([[1, 0], [1, 1], [0, 0.0]])
    assert clustered_interval(values, [0, 1, 2]) == clustered_interval(values.mean(1), [0, 1, 2])


@pytest.mark.parametrize(
    ("values", "clusters", "said"),
    [
        ([], [], "no pair"),
        ([1.0], [0, 1], "as many"),
        ([math.nan], [0], "finite"),
        ([-1.0, 1.0], [0, 1], r"in 0\.\.1 \(differences need paired=True\)"),
        ([1.5], [0], "got 1.5"),
    ],
)
def test_intervals_refuse_nonsense(values, clusters, said):
    with pytest.raises(ValueError, match=said):
        clustered_interval(values, clusters)


def test_metrics_come_back_and_are_the_same_bytes(tmp_path):
    path = write_metrics(tmp_path, [ROW], seed=1)
    first = path.read_bytes()
    assert read_metrics(tmp_path).rows == (ROW,)
    assert read_metrics(path).facts == {"seed": 1}
    assert write_metrics(tmp_path, [ROW], seed=1).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    either = [
        write_metrics(tmp_path, [ROW], **facts).read_bytes()
        for facts in ({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 2, "c": 1}, "a": 1})
    ]
    assert either[0] == either[1], "the order in which facts are gathered is not a fact"


def test_bad_rows_leave_the_file_as_it_was(tmp_path):
    write_metrics(tmp_path, [ROW])
    for bad in (replace(ROW, value=math.nan), replace(ROW, high=math.inf)):
        with pytest.raises(ValueError, match="not finite"):
            write_metrics(tmp_path, [ROW, bad])
    with pytest.raises(ValueError, match=r"rows\[1\].split.*tset"):
        write_metrics(tmp_path, [ROW, replace(ROW, split="tset")])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, [ROW], loss=math.nan)
    assert read_metrics(tmp_path).rows == (ROW,)


def test_damaged_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="did not finish"):
        read_metrics(tmp_path)
    path = write_metrics(tmp_path, [ROW])
    content = json.loads(path.read_text())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        read_metrics(path)
    path.write_text(json.dumps(content).replace("0.5", "NaN"))
    with pytest.raises(ValueError, match="damaged: NaN"):
        read_metrics(path)
    content["rows"][0]["split"] = "tset"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"rows\[0\].split.*tset"):
        read_metrics(path)


def test_select_sees_validation_only():
    rows = [
        replace(ROW, layer=layer, value=value) for layer, value in ((1, 0.2), (2, 0.7), (3, 0.6))
    ]
    test = [replace(row, split="test", value=1 - row.value) for row in rows]
    others = [
        replace(rows[0], control="vanilla", value=0.99),
        replace(rows[0], subset="all", value=0.99),
    ]
    assert select(rows + test + others).layer == 2
    assert select(rows + [replace(row, value=0.0) for row in test]) == select(rows)
    assert [row.layer for row in rows_of(test, select(rows))] == [2]
    with pytest.raises(ValueError, match="no validation row"):
        select(test)


def test_variables_are_not_compared_with_each_other():
    rows = [
        replace(ROW, variable=variable, value=value) for variable, value in (("v", 1), ("w", 0))
    ]
    with pytest.raises(ValueError, match=r"rows are of \['v', 'w'\]"):
        select(rows)
    assert select(where(rows, variable="w")).variable == "w"


def test_ties_go_to_the_smaller_claim():
    rows = [
        replace(ROW, rank=rank, layer=layer) for rank, layer in ((8, 1), (4, 9), (4, 5), (None, 0))
    ]
    assert (select(rows).rank, select(rows).layer) == (4, 5)
    assert select(rows) == select(rows[::-1])
    assert Cell.of(replace(ROW, position=[1, 2])) == Cell.of(replace(ROW, position=[1, 2]))
    assert hash(Cell.of(replace(ROW, head=[1, 2])))


def test_the_logit_difference_is_taken_where_the_answers_first_differ():
    logits = torch.arange(12.0).reshape(1, 3, 4) ** 2
    label = torch.tensor([[1, 2, 3]])
    assert logit_difference(logits, label, torch.tensor([[1, 0, 3]])).tolist() == [6.0**2 - 4.0**2]
    assert logit_difference(logits, label, torch.tensor([[3]])).tolist() == [1.0 - 9.0]
    unknown = [[[1, 2, 3]], [[1, 2]], [[1, -100, -100]]]
    assert all(
        logit_difference(logits, label, torch.tensor(other)).isnan().all() for other in unknown
    )


def test_an_unbounded_interval_covers_any_values():
    found = clustered_interval([5.0, -3.0, 7.0], [0, 1, 2], bounded=False)
    assert found.value == 3.0
    assert -3.0 <= found.low < 3.0 < found.high <= 7.0
    alone = clustered_interval([5.0, 7.0], [0, 0], bounded=False)
    assert tuple(alone) == (6.0, 5.0, 7.0, 2)


def test_an_interval_over_seeds_is_never_narrower_than_their_own():
    alike = over_seeds([Interval(1.0, 0.98, 1.0, 200)] * 3)
    assert alike == (1.0, pytest.approx(0.98), 1.0, 3)
    apart = over_seeds([Interval(v, v - 0.01, v + 0.01, 200) for v in (0.2, 0.8)])
    assert (apart.low, apart.high, apart.n) == (0.0, 1.0, 2), "two seeds that disagree say little"
    assert over_seeds([Interval(0.5, 0.4, 0.6, 20)]) == (0.5, 0.4, 0.6, 1)
    with pytest.raises(ValueError, match="no seed"):
        over_seeds([])
