"""Figures over the tokens of one prompt: attention patterns, and the logit lens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iit.result.figure import Figure
from iit.result.maps import hatch, styled

N_COLUMNS = 4


@styled
def attention_figure(
    weights: Mapping[str, np.ndarray], tokens: Sequence[str], *, title: str | None = None
) -> Figure:
    """A panel for each head: rows are queries, columns the keys that they look at.

    All panels have one scale, from 0 to 1. Keys that come behind a query are hatched, unless some
    query of the head looks at one.

    Arguments:
        weights: the head's name → float[query, key].
        tokens: the prompt's tokens, one for each row and column.

    Raises:
        ValueError: for no head, and weights of another size than the prompt.
    """
    if not weights:
        raise ValueError("There is no head to show.")
    n = len(tokens)
    for name, matrix in weights.items():
        if matrix.shape != (n, n):
            raise ValueError(
                f"The weights of {name!r} have shape {matrix.shape}; the prompt has {n} tokens."
            )

    n_columns = min(N_COLUMNS, len(weights))
    # Rounded up.
    n_rows = -(-len(weights) // n_columns)
    side = max(1.8, 0.19 * n)
    size = (side * n_columns + 1.8, (side + 0.25) * n_rows + 1.1)
    figure = Figure(figsize=size)
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    texts = list(map(_plain, tokens))
    behind = np.triu(np.ones((n, n), dtype=bool), 1)

    for axes, (name, matrix) in zip(panels, weights.items(), strict=False):
        hatch(axes)
        # A network that is not causal is shown with all its keys.
        is_causal = not matrix[behind].any()
        shown = np.ma.masked_where(behind & is_causal, matrix)
        axes.imshow(shown, vmin=0, vmax=1, cmap="Blues", origin="upper", aspect="equal")
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(n), texts, fontsize=7, rotation=90)
        axes.set_yticks(range(n), texts, fontsize=7)
        axes.tick_params(length=0, labelbottom=True)
        axes.spines[:].set_visible(False)

    for axes in panels[len(weights) :]:
        axes.set_visible(False)
    for axes in panels[::n_columns]:
        axes.set_ylabel("query")
    for axes in panels[len(weights) - n_columns : len(weights)]:
        axes.set_xlabel("key")
    figure.colorbar(panels[0].images[0], ax=figure.axes, label="attention weight", shrink=0.8)
    if title:
        figure.suptitle(title)
    return figure


@styled
def lens_figure(lines: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """The logit lens of one prompt: the likeliest token at each layer × position.

    Cells are coloured by the token's probability.

    Arguments:
        lines: with the columns layer, position, token, rank, top and probability, as
            `iit.patching.top_tokens` gives them. Those of rank 1 have to be of one prompt.

    Raises:
        ValueError: where there are none, and where several stand for one cell.
    """
    first = [line for line in lines if line["rank"] == 1]
    if not first:
        raise ValueError("No line has rank 1: there is nothing to show.")
    cells = {(line["layer"], line["position"]) for line in first}
    if len(first) > len(cells):
        raise ValueError("Several lines stand for one cell: give the lines of one prompt.")
    layers, places = map(sorted, map(set, zip(*cells, strict=True)))
    tokens = [""] * len(places)
    grid = np.full((len(layers), len(places)), np.nan)
    figure = Figure(figsize=(0.75 * len(places) + 1.8, 0.24 * len(layers) + 1.4))
    axes = figure.subplots()
    hatch(axes)

    for line in first:
        row = layers.index(line["layer"])
        column = places.index(line["position"])
        tokens[column] = _plain(line["token"])
        grid[row, column] = line["probability"]
        colour = "black"
        # The colour map is dark where the probability is high.
        if line["probability"] > 0.55:
            colour = "white"
        axes.text(
            column,
            row,
            _plain(line["top"])[:10],
            ha="center",
            va="center",
            fontsize=7,
            color=colour,
        )

    image = axes.imshow(grid, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(places)), tokens, fontsize=8, rotation=45, ha="right")
    axes.set_yticks(range(len(layers)), list(map(str, layers)), fontsize=7)
    axes.set(xlabel="token", ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="probability of the token shown")
    if title:
        figure.suptitle(title)
    return figure


def _plain(token: str) -> str:
    """A token's text with low lines for spaces, escaped so that none is read as a formula."""
    return repr(token)[1:-1].replace(" ", "_").replace("$", r"\$")
