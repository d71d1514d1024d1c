"""The model card: what a save is, for people who have not seen the run behind it."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from iit.intervened.edit import Edit, Variable, variables_of
from iit.intervened.saving import SaveContent
from iit.result import Row, where
from iit.result.vocabulary import CONTROLS

ARMS = (None, "vanilla", "random_subspace", "no_intervention")
"""The rows of a table of scores: the alignment (None) and its controls."""


def card(saved: SaveContent, address: str) -> str:
    """The card's text.

    It states the network, each variable with its sites and intervention, and an alignment's scores
    beside its controls. The scores are those of the test split, or of the split that was scored
    where the test split was not. What was not measured is said to be so.

    Arguments:
        address: what `from_pretrained` is to be called with.
    """
    network = saved.network
    kind, name, scored = "IntervenedModel", "edited", None
    if saved.record is not None:
        kind, name = "Alignment", "alignment"
        scored = _tables(list(map(Row.from_dict, saved.record["rows"])))
    variables, type_names = [], set()
    for key, edit in saved.edits.items():
        for variable in variables_of(key, edit):
            variables.append(_described(variable, edit))
        # A reader has to pass these classes to `from_pretrained`.
        type_names.update(edit.intervention.custom_parts)
    template = files("iit.intervened").joinpath("model_card.md.jinja")
    text = ModelCard.from_template(
        ModelCardData(
            library_name="iit",
            tags=["causal-abstraction", "interpretability", "interchange-intervention"],
        ),
        template_str=template.read_text(encoding="utf-8"),
        kind=kind,
        name=name,
        network=network,
        variables=variables,
        scored=scored,
        loading=_loading(network),
        address=address,
        types=sorted(type_names),
    ).content
    return str(text).rstrip("\n") + "\n"


def _loading(network: Mapping[str, Any]) -> str:
    name, dtype = network["name"], network["dtype"]
    # A missing name, or one that is only the class, cannot be loaded.
    if name in (None, network["class"]):
        return f"...  # the {network['class']} with the fingerprint above"
    options = "" if dtype == "float32" else f', dtype="{dtype}"'
    # Only the hub has revisions to choose from.
    if network["revision"] and "/" in name:
        options += f', revision="{network["revision"]}"'
    return f'iit.load_network("{name}"{options})'


def _described(variable: Variable, edit: Edit) -> dict[str, Any]:
    intervention = edit.intervention
    blocks = intervention.config()["blocks"]
    return {
        "name": str(variable),
        "sites": "; ".join(map(str, edit.sites)),
        "source_sites": "; ".join(map(str, edit.source_sites)),
        "intervention": intervention.name,
        "is_block": blocks is not None,
        "joint": edit.joint,
        # A block's rank is its number of coordinates.
        "rank": intervention.learned_rank() if blocks is None else blocks[variable],
        "width": intervention.width,
    }


def _tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table for each variable, task and seed that was scored."""
    split_rows = where(rows, split="test")
    if rows and not split_rows:
        split_rows = where(rows, split=rows[0].split)
    tables = []
    # In the order of the rows, each once.
    headings = dict.fromkeys((row.variable, row.task, row.seed) for row in split_rows)
    for variable, task, seed in headings:
        scored = where(split_rows, variable=variable, task=task, seed=seed)
        arms = []
        for control in ARMS:
            iia = where(scored, metric="iia", control=control, draw=None)
            # A later row of the same figure replaces an earlier one.
            by_subset = {row.subset: row for row in iia}
            arms.append({"name": CONTROLS[control].words, **by_subset})
        accuracy = where(scored, metric="task_accuracy", subset="all", control=None)
        table = {"variable": variable, "task": task, "seed": seed, "split": scored[0].split}
        tables.append(table | {"arms": arms, "task_accuracy": accuracy[-1] if accuracy else None})
    return tables
