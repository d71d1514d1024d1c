"""Pictures of a causal model."""

from collections.abc import Mapping
from typing import Any

import networkx as nx

from iit.causal.model import CausalModel
from iit.result.figure import Figure

_COLOURS = {"input": "#DDEBF4", "computed": "#FFFFFF", "output": "#FCE6D3"}
_ALIGNED = "#0072B2"


def graph(model: CausalModel) -> nx.DiGraph:
    """The model's graph, parents → children. Nodes have `kind` (input | computed | output) and
    `depth`, their layer.

    An input's layer is just before its first child's, so that arrows are short.
    """
    drawn = nx.DiGraph(name=model.name)
    drawn.add_nodes_from(model.order, kind="computed")
    for variable in model.mechanisms:
        for parent in model.parents(variable):
            drawn.add_edge(parent, variable)
    for depth, variables in enumerate(nx.topological_generations(drawn)):
        drawn.add_nodes_from(variables, depth=depth)
    for variable in model.inputs:
        depths = [drawn.nodes[child]["depth"] for child in drawn.successors(variable)]
        drawn.add_node(variable, kind="input", depth=min(depths, default=1) - 1)
    drawn.add_node(model.output, kind="output")
    return drawn


def figure(model: CausalModel, places: Mapping[str, str] | None = None) -> Figure:
    """The graph, drawn left to right: inputs blue, computed variables white, the output orange.

    places: {variable: where it is aligned}; it stands below the variable's name, and the variable
        has a thick border. Raises ValueError for a variable the model lacks.
    """
    places = dict(places or {})
    for variable in places:
        model.parents(variable)  # refuses what does not exist
    drawn = graph(model)
    depth = dict(drawn.nodes(data="depth"))
    layers: Any = {}
    labels: dict[str, str] = {}
    for variable in drawn:
        layers.setdefault(depth[variable], []).append(variable)
        labels[variable] = f"{variable}\n{places.get(variable, '')}".strip()
    tallest = max(map(len, layers.values()))
    # By the attribute's name networkx would order a layer by hashes, anew in each process.
    place: Any = nx.multipartite_layout(drawn, subset_key=layers)
    longest = max(map(len, "\n".join(labels.values()).split("\n")))
    size = (
        max(3.0, (0.09 * longest + 1.0) * len(layers)),
        max(1.6, (0.8 if places else 0.62) * tallest),
    )
    picture = Figure(figsize=size, layout="constrained")
    axes = picture.add_subplot()
    boxes = {}
    for variable, kind in drawn.nodes(data="kind"):
        box: dict[str, Any] = {"boxstyle": "round,pad=0.45", "facecolor": _COLOURS[str(kind)]}
        box["edgecolor"] = "#444444"
        if variable in places:
            box |= {"edgecolor": _ALIGNED, "linewidth": 2.2}
        x, y = place[variable]
        text = axes.text(
            x,
            y,
            labels[variable],
            ha="center",
            va="center",
            fontsize=9,
            bbox=box,
            zorder=1,
        )
        boxes[variable] = text.get_bbox_patch()
    for parent, child in drawn.edges:
        bend = 0.0
        # Longer arrows pass above or below the layers between.
        if depth[child] - depth[parent] != 1:
            bend = 0.22 if place[parent][1] > 0 else -0.22
        arrow = {"arrowstyle": "-|>", "color": "#444444", "connectionstyle": f"arc3,rad={bend}"}
        arrow |= {"patchA": boxes[parent], "patchB": boxes[child]}
        axes.annotate("", place[child], place[parent], arrowprops=arrow, zorder=2)
    axes.update_datalim(list(place.values()))
    axes.autoscale_view()
    axes.margins(0.6 / max(1, len(layers) - 1), 0.6 / max(1, tallest - 1))
    axes.invert_yaxis()
    axes.set(title=model.name)
    axes.set_axis_off()
    return picture
