"""A run's figures as a table: on the terminal, and in Markdown for an experiment's page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iit.report.atlas import atlas_table, is_atlas
from iit.report.ground_truth import ground_truth_table, is_ground_truth
from iit.report.ladder import is_ladder, ladder_table
from iit.report.patched import is_maps, map_captions, maps_tables
from iit.report.steered import is_steered, steered_examples, steered_table
from iit.report.verdict import verdict_table
from iit.result import Cell, Row, read_metrics

_NAMES = {
    (None, "iia"): "trained intervention",
    ("vanilla", "iia"): "vanilla patching (whole vector)",
    ("pca_subspace", "iia"): "principal components of equal rank",
    ("random_subspace", "iia"): "random subspaces of equal rank",
    ("majority", "iia"): "majority answer of the training pairs",
    ("no_intervention", "iia"): "no intervention",
    ("inert_resampled", "iia"): "trained, inert parts from a third input",
    ("shuffled_label", "iia"): "trained on shuffled labels",
    ("untrained_network", "iia"): "trained in an untrained network",
    ("wrong_site", "iia"): "trained at a wrong site",
    ("least_rank", "iia"): "trained at the least rank that the variable's values need",
    ("placebo_direction", "iia"): "moved as far in a random direction",
    ("placebo_pair", "iia"): "moved by another pair's difference",
    ("seeds", "iia"): "all seeds",
    ("read_part", "iia"): "the part that downstream reads",
    ("read_part/vanilla", "iia"): "what downstream reads of the whole vector",
    ("read_part/random_subspace", "iia"): "the part of random subspaces that downstream reads",
    ("null_part", "iia"): "the part that downstream does not read",
    (None, "abstraction_error/down"): "error as an abstraction, interventions from the causal model",
    (None, "abstraction_error/up"): "error as an abstraction, interventions from the network",
    (None, "divergence"): "edited activations farther from natural than 95% of unedited",
    ("seeds", "principal_angle"): "degrees between the seeds' subspaces",
    ("random_subspace", "principal_angle"): "degrees between random subspaces of these ranks",
    ("seeds", "principal_angle/natural"): "degrees between the seeds', where natural activations vary",
    ("random_subspace", "principal_angle/natural"): "degrees between random ones there",
    ("seeds", "principal_angle/read"): "degrees between the seeds', in what downstream reads",
    ("random_subspace", "principal_angle/read"): "degrees between random ones in what downstream reads",
    ("vanilla", "iia_difference"): "trained − vanilla, paired",
    ("random_subspace", "iia_difference"): "trained − random subspaces, paired",
    ("no_intervention", "iia_difference"): "trained − no intervention, paired",
    (None, "iia_forced"): "right among the pair's own answers, trained",
    ("untrained_network", "iia_forced"): "right among the pair's own answers, in an untrained network",
    ("no_intervention", "iia_forced"): "right among the pair's own answers, no intervention (chance)",
    (None, "cut"): "the source's own answer, of all that the sites hold",
    (None, "disentangle"): "disentangle score, trained",
    ("vanilla", "disentangle"): "disentangle score, vanilla",
    ("random_subspace", "disentangle"): "disentangle score, random subspaces",
    (None, "logit_difference"): "logit(label) − logit(own answer), trained",
    ("vanilla", "logit_difference"): "logit(label) − logit(own answer), vanilla",
    ("random_subspace", "logit_difference"): "logit(label) − logit(own answer), random",
    ("no_intervention", "logit_difference"): "logit(label) − logit(own answer), no intervention",
    (None, "answer_agreement"): "label and source's answer agree up to the site",
    (None, "task_accuracy"): "task accuracy, before filtering",
}
SUBSETS = ("changing", "unchanging", "all")
HEADER = ("test split", "pairs", "value", "95% interval", "n")


def lines(rows: Sequence[Row], *, brief: bool = False) -> list[tuple[str, ...]]:
    """What is shown of a run: test figures, those with a name in its order and then the others, changing pairs first.

    The single draws of a pooled control (`random_subspace/0`, `seed/1`, …), differences from the controls but the first three, and readouts of
    what was trained again are left to `metrics.json`. Figures of several cells say whose they are.

    brief: of controls and differences the changing pairs alone, where there are any.
    """
    order = list(_NAMES)
    shown = [row for row in rows if row.split == "test" and not _left_out(row)]
    if brief and any(row.subset == "changing" for row in shown):
        shown = [
            row for row in shown if row.control is None or row.subset == "changing" or row.metric.startswith("principal_angle")
        ]
    mine = dict.fromkeys(Cell.of(row) for row in shown if not _is_off_target(row))
    cells = list(mine | dict.fromkeys(Cell.of(row) for row in shown))
    one_place = len({replace(cell, variable=None) for cell in cells}) == 1

    def place(row: Row) -> tuple[int, int, int]:
        kind = (row.control, row.metric)
        subset = SUBSETS.index(row.subset) if row.subset in SUBSETS else len(SUBSETS)
        return cells.index(Cell.of(row)), order.index(kind) if kind in order else len(order), subset

    found = []
    for row in sorted(shown, key=place):
        name = _NAMES.get((row.control, row.metric), f"{row.metric}, {row.control or 'trained'}")
        if (row.control or "").startswith("rival/"):
            name = f"trained, scored by the rival {(row.control or '').removeprefix('rival/')!r}"
        if (row.control or "").startswith("rank/"):
            name = f"trained at rank {(row.control or '').removeprefix('rank/')}"
        if _is_off_target(row):
            name = f"the edit of {(row.control or '').removeprefix('off_target/')!r} instead (off target)"
        whose = "" if len(mine) == 1 and Cell.of(row) in mine else f"{row.variable}: " if one_place else f"{describe(row)}: "
        pairs = (
            "prompts"
            if row.metric == "task_accuracy"
            else row.subset.replace("kind/", "differing in ").replace("in none", "in nothing")
        )
        found.append((whose + name, pairs, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n)))
    return found


def _is_off_target(row: Row) -> bool:
    return (row.control or "").startswith("off_target/")


def _left_out(row: Row) -> bool:
    single = (row.control or "").startswith(("random_subspace/", "read_part/random_subspace/", "seed/"))
    brief = row.metric in ("iia_difference", "iia_forced", "logit_difference")
    return single or (brief and (row.control, row.metric) not in _NAMES)


def describe(row: Row) -> str:
    """The cell of a row in words."""
    if row.component is None:
        return f"task {row.task}"
    layer = "" if row.layer is None else f"[{row.layer}]"
    head = "" if row.head is None else f", head {row.head}"
    position = "" if row.position is None else f" @ {row.position}"
    rank = "" if row.rank is None else f", rank {row.rank}"
    return f"{row.variable} at {row.component}{layer}{head}{position}{rank}"


def results_table(rows: Sequence[Row]) -> Table:
    """The figures for the terminal. Raises ValueError when there are none."""
    if not rows:
        raise ValueError("There is no row to show: the job returned none.")
    cells = {Cell.of(row) for row in rows if row.split == "test"} or {Cell.of(row) for row in rows}
    what = describe(next(row for row in rows if Cell.of(row) in cells)) if len(cells) == 1 else f"{len(cells)} cells"
    table = Table(title=escape(f"{rows[0].experiment}: {what} in {rows[0].network}"))
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="left" if number < 2 else "right")
    for line in lines(rows, brief=True):
        table.add_row(*map(escape, line), style="bold" if line[0].endswith(_NAMES[None, "iia"]) else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The figures for an experiment's README."""
    return markdown(HEADER, lines(rows), n_left=2)


def markdown(header: Sequence[str], body: Sequence[Sequence[str]], *, n_left: int = 1) -> str:
    """A table whose first `n_left` columns are words and the others figures.

    Raises ValueError for a line that has not as many cells as the header.
    """
    wrong = [line for line in body if len(line) != len(header)]
    if wrong:
        raise ValueError(f"The columns are {list(header)}; a line has other cells: {list(wrong[0])}.")
    rule = ["---" if number < n_left else "---:" for number in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *body)) + "\n"


def print_results(folder: str | Path) -> None:
    """Print a run's table and where its folder is."""
    console, metrics = Console(), read_metrics(folder)
    rows = metrics.rows
    if is_ground_truth(metrics.facts):
        console.print(ground_truth_table(rows, metrics.facts["verdicts"]))
    elif is_ladder(rows):
        console.print(ladder_table(rows))
    elif is_maps(metrics.facts):
        console.print(*maps_tables(rows, metrics.facts), *map_captions(metrics.facts), sep="\n")
    elif is_steered(metrics.facts):
        console.print(steered_table(rows, metrics.facts))
        for prompt, texts in steered_examples(metrics.facts).items():
            console.print(prompt, *(f"  {text}" for text in texts), sep="\n", markup=False, highlight=False)
    else:
        if is_atlas(rows):
            console.print(atlas_table(rows))
        console.print(results_table(rows))
    for found in metrics.facts.get("verdict", ()):
        console.print(verdict_table(found))
    console.print(f"Run folder: {folder}", soft_wrap=True, markup=False)
