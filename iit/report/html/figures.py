"""What the figures of a page need beyond their rows: axes, colours, means and places.

The templates choose the rows of each figure, and draw it. They see this module as `plot`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from safetensors.numpy import load_file
from scipy.linalg import subspace_angles

from iit import report as report
from iit import result
from iit.report.html.folder import Folder, open_folder
from iit.report.html.section import Section
from iit.result import Interval, Row, vocabulary, where
from iit.result import maps as maps

Line = dict[str, Any]
"""A line of a table; most have value, low, high and n."""


def first_sections(folder: Folder) -> list[Section]:
    """The first screen of maps, steering and a sweep."""
    return [_section("claim", "", "first", folder)]


def where_sections(folder: Folder) -> list[Section]:
    """Where and how much; under steering also what was written."""
    sections = [_section("where", "Where and how much", "where", folder)]
    if folder.kind == "steering":
        sections.append(_section("written", "What was written", "written", folder))
    return sections


def _section(name: str, title: str, template: str, folder: Folder) -> Section:
    return Section(name, title, f"sections/{template}_{folder.kind}.html.j2", {"folder": folder})


def causal_model(folder: Folder) -> Line | None:
    """The graph of `causal_model.json` with the `places` of its nodes: (depth, height).

    Variables without an edge have no place. Without the file there is no graph.
    """
    graph = folder.read("causal_model.json")
    if not graph:
        return None
    edges, places = graph["edges"], {}
    linked = {name for edge in edges for name in edge}

    def height(name: str) -> float:
        # Below each other as their parents are, so that few edges cross.
        return fmean([places[parent][1] for parent, child in edges if child == name] or [0])

    for depth, nodes in sorted(maps.split_by(graph["nodes"], "depth").items()):
        names = [node["name"] for node in nodes if node["name"] in linked]
        for number, name in enumerate(sorted(names, key=height)):
            places[name] = depth, number - (len(names) - 1) / 2
    return graph | {"places": places, "meanings": folder.metrics.facts.get("meanings", {})}


def axis(values: Sequence[float], metric: str = "") -> Line:
    """The ends of an axis and its ticks: from 0 to 1 for shares, else with 0."""
    low, high = min(0.0, *values), max(0.0, *values)
    if metric in maps.SHARES:
        low, high = 0.0, 1.0
    ticks: Any = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return {"low": ticks[0], "high": ticks[-1], "ticks": ticks.tolist()}


def colour(name: str, share: float) -> tuple[str, bool]:
    """The colour at a share of a colour map, and whether it is dark."""
    shade = colormaps[name](share)
    return to_hex(shade), sum(shade[:3]) < 1.2


def means(lines: Sequence[Line], *columns: str) -> list[Line]:
    """The mean of the lines that share these columns, such as seeds, with its interval."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(map(line.get, columns)), []).append(line)
    shown = []
    for group in groups.values():
        figures = [Interval(*map(line.__getitem__, Interval._fields)) for line in group]
        # `over_seeds` counts seeds; here n counts pairs.
        shown.append(group[0] | result.over_seeds(figures)._asdict() | {"n": group[0]["n"]})
    return shown


def by_rank(rows: Sequence[Row], cell: result.Cell, split: str) -> list[Line]:
    """IIA on changing pairs of the cells that differ from this one in rank and seed alone."""
    lines = []
    for row in where(rows, split=split, metric="iia", subset="changing"):
        control, rank = row.control, row.rank
        if control == "lower_rank":
            control, rank = None, row.draw
        elif row.draw is not None:
            continue
        same = result.Cell.of(row)._replace(rank=cell.rank, seed=cell.seed) == cell
        if same:
            arm = {"arm": vocabulary.CONTROLS[control].words, "control": control, "rank": rank}
            lines.append(row.to_dict() | arm)
    return means(lines, "arm", "rank")


def map_lines(rows: Sequence[Row], name: str, about: Line) -> list[Line]:
    """The validation figures of a map; the strongest cells have their place as `chosen`."""
    lines = []
    for row in where(rows, split="validation", metric=about["metric"], control=None):
        if str(row.experiment).endswith(f"/{name}"):
            _, _, unit = str(row.method).partition("[")
            line = row.to_dict() | {"unit": int(unit[:-1]) if unit else None}
            if row.site_text() in about["top"]:
                line["chosen"] = str(about["top"].index(row.site_text()) + 1)
            lines.append(line)
    return lines


def angles(sweep: Folder, jobs: Mapping[str, str]) -> Iterator[Line]:
    """The mean principal angle, in degrees, between the frames of each two jobs' alignments.

    Alignments that are not a single frame have none.

    Arguments:
        jobs: {name: the job's folder in the sweep's}.
    """
    frames = {}
    for name, job in jobs.items():
        folder = open_folder(sweep.path / job)
        parts = (folder.read("alignment/config.json") or {}).get("interventions", ())
        if [(part["basis"]["type"], part["gate"]["type"]) for part in parts] == [("Frame", "All")]:
            path = folder.path / "alignment/interventions.safetensors"
            (frames[name],) = load_file(path).values()
    for one, other in combinations(frames, 2):
        radians = subspace_angles(frames[one], frames[other])
        yield {"name": f"{one} and {other}", "value": float(np.rad2deg(radians).mean())}
