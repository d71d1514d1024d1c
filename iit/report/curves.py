"""Training curves from a run's CSV log."""

from pathlib import Path
from typing import Any

import pandas as pd

from iit.result.figure import Figure
from iit.result.maps import styled

# Okabe and Ito's colours, which colour-blind readers can tell apart, also in print.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_IIA = (("iia_changing", "changing pairs", _GREEN, "s"), ("iia", "all pairs", _ORANGE, "o"))
_REFERENCES = (
    ("vanilla", "whole vector", "dashed"),
    ("random_subspace", "random subspace", "dotted"),
)


def read_log(path: str | Path) -> Any:
    """The series of a Lightning CSV log, {metric: [(step, value), …]}, without blanks."""
    table = pd.read_csv(path, index_col="step")
    # A line holds what was logged at one step; its other cells are blank.
    return {name: list(column.dropna().items()) for name, column in table.items()}


@styled
def training_curve(path: str | Path) -> Figure:
    """Losses and validation IIA against optimizer steps.

    The losses are those of each training step and of validation. IIA is given on all and on
    changing pairs. Where they were logged, the IIA of the whole vector (dashed) and of a random
    subspace (dotted) is there, too. A log without validation IIA gives the losses alone.

    Raises:
        ValueError: where the log holds no training loss.
    """
    series = read_log(path)
    if "train/loss" not in series:
        raise ValueError(f"{path} holds no 'train/loss'; it logs {sorted(series)}.")
    scored = [line for line in _IIA if f"val/{line[0]}" in series]
    width, n_panels = (10, 2) if scored else (4, 1)
    figure = Figure(figsize=(width, 3.2))
    loss = figure.add_subplot(1, n_panels, 1)
    loss.plot(
        *zip(*series["train/loss"], strict=True),
        color=_BLUE,
        linewidth=1,
        label="training, each step",
    )
    if "val/loss" in series:
        loss.plot(
            *zip(*series["val/loss"], strict=True), color=_ORANGE, marker="o", label="validation"
        )

    loss.set(xlabel="optimizer step", ylabel="loss (nats)")
    loss.set_ylim(bottom=0)
    loss.legend()
    if scored:
        accuracy = figure.add_subplot(1, 2, 2)
        for metric, label, colour, marker in scored:
            accuracy.plot(
                *zip(*series[f"val/{metric}"], strict=True),
                color=colour,
                marker=marker,
                label=label,
            )
            for control, reference, style in _REFERENCES:
                line = series.get(f"val/{control}/{metric}")
                if line:
                    accuracy.plot(
                        *zip(*line, strict=True),
                        color=colour,
                        linestyle=style,
                        label=f"{label}, {reference}",
                    )

        accuracy.set(xlabel="optimizer step", ylabel="validation IIA", ylim=(-0.02, 1.02))
        figure.legend(
            *accuracy.get_legend_handles_labels(),
            loc="outside right center",
            fontsize="small",
        )

    return figure
