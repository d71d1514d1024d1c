"""Pictures of a causal model."""

from collections.abc import Mapping
from typing import Any

import networkx as nx
from matplotlib.figure import Figure

from iit.causal.model import CausalModel

_INPUT, _COMPUTED, _OUTPUT, _ALIGNED = "#DDEBF4", "#FFFFFF", "#FCE6D3", "#0072B2"


def graph(model: CausalModel) -> nx.DiGraph:
    """The model's graph, parents → children. Nodes have `kind` (input | computed | output) and `depth`, their layer.

    An input's layer is just before its first child's, so that arrows are short.
    """
    found: Any = nx.DiGraph(name=model.name)
    depth: dict[str, int] = {}
    for variable in model.order:
        depth[variable] = max((depth[p] + 1 for p in model.parents(variable)), default=0)
    for variable in model.inputs:
        children = [depth[v] for v in model.mechanisms if variable in model.parents(v)]
        depth[variable] = min(children, default=1) - 1
    for variable in model.order:
        kind = "output" if variable == model.output else "input" if variable in model.inputs else "computed"
        found.add_node(variable, kind=kind, depth=depth[variable])
    found.add_edges_from((parent, variable) for variable in model.mechanisms for parent in model.parents(variable))
    return found


def figure(model: CausalModel, places: Mapping[str, str] | None = None) -> Figure:
    """The graph, drawn left to right: inputs blue, computed variables white, the output orange.

    places: {variable: where it is aligned}; it stands below the variable's name, and the variable has a thick border. Raises ValueError
        for a variable the model lacks.
    """
    places = dict(places or {})
    for variable in places:
        model.parents(variable)  # refuses what does not exist
    drawn: Any = graph(model)
    layers = [list(layer) for _, layer in sorted(_layers(drawn).items())]
    labels = {variable: f"{variable}\n{places[variable]}" if variable in places else variable for variable in drawn.nodes}
    tallest, longest = max(map(len, layers)), max(len(line) for label in labels.values() for line in label.split("\n"))
    height = 0.62 if not places else 0.8
    picture = Figure(figsize=(max(3.0, (0.09 * longest + 1.0) * len(layers)), max(1.6, height * tallest)), layout="constrained")
    axes = picture.add_subplot()
    place = {v: (x, (len(layer) - 1) / 2 - y) for x, layer in enumerate(layers) for y, v in enumerate(layer)}
    colours = {"input": _INPUT, "computed": _COMPUTED, "output": _OUTPUT}
    boxes = {}
    for variable, kind in drawn.nodes(data="kind"):
        border = {"edgecolor": _ALIGNED, "linewidth": 2.2} if variable in places else {"edgecolor": "#444444"}
        box = {"boxstyle": "round,pad=0.45", "facecolor": colours[kind], **border}
        text = axes.text(*place[variable], labels[variable], ha="center", va="center", fontsize=9, bbox=box, zorder=1)
        boxes[variable] = text.get_bbox_patch()
    for parent, child in drawn.edges:
        # Longer arrows pass above or below the layers between.
        bend = 0.0 if place[child][0] - place[parent][0] < 1.5 else 0.22 if place[parent][1] < 0 else -0.22
        style = {"arrowstyle": "-|>", "color": "#444444", "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate(
            "", place[child], place[parent], arrowprops={**style, "patchA": boxes[parent], "patchB": boxes[child]}, zorder=2
        )
    axes.set(xlim=(-0.6, len(layers) - 0.4), ylim=(-tallest / 2 - 0.1, tallest / 2 + 0.1), title=model.name)
    axes.set_axis_off()
    return picture


def _layers(drawn: Any) -> dict[int, list[str]]:
    """depth → its variables, each near the mean height of what it is computed from."""
    layers: dict[int, list[str]] = {}
    for variable, depth in drawn.nodes(data="depth"):
        layers.setdefault(depth, []).append(variable)
    height: dict[str, float] = {}
    for _, layer in sorted(layers.items()):
        known = {v: [height[p] for p in drawn.predecessors(v) if p in height] for v in layer}
        layer.sort(key=lambda v: sum(known[v]) / len(known[v]) if known[v] else len(layer) / 2)
        height |= {v: (i + 0.5) / len(layer) for i, v in enumerate(layer)}
    return layers
