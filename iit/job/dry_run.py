"""A dry run: a job checked with configuration and tokenizer alone, and the memory it will need."""

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from itertools import chain
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from rich.console import Console

from iit.alignment import Alignment
from iit.alignment.labels import check_labels
from iit.batch import IGNORED
from iit.data import EncodedPairs
from iit.intervened import Edit, IntervenedModel
from iit.intervened.edit import as_sites, sites_of
from iit.intervention import VanillaIntervention
from iit.job.atlas import check_axes, made_cells
from iit.job.declared import check_config
from iit.job.memory import demand
from iit.job.setup import pairs_of
from iit.job.train_network import untrained_network
from iit.network import Network
from iit.network.answering import with_answer
from iit.network.inputs import prepare
from iit.network.limits import n_positions
from iit.patching.grid import grid
from iit.patching.trace import SPANS
from iit.report.table import Table
from iit.site import Site

Edited = dict[str, IntervenedModel]
"""What a job edits, by name."""
Batches = dict[str, list[dict[str, Any]]]
"""The whole splits on which each of these runs, by its name; "" for all without pairs of theirs."""
Texts = dict[str, str]
"""Lines of the table: {what was checked: what came out}."""


class DryRun(NamedTuple):
    """What a dry run says.

    wrong: a sentence for each check that fails.
    memory: {what needs it: bytes}; empty where a check before it fails.
    """

    wrong: list[str]
    memory: dict[str, int]


class _NoWeightsError(Exception):
    """Raised where a run would go on to the network, which has no weights."""


def dry_run(cfg: DictConfig) -> DryRun:
    """Check a job without weights, and print one table: what was checked, and the memory needed.

    No prompt is left out for its answer, which only a run can tell.

    Arguments:
        cfg: a composed config, as `iit.run.run` takes it.
    """
    lines, wrong = [], []

    def check(name: str, find: Callable[..., tuple[Any, Texts]], *needed: Any) -> Any:
        """What `find` returns first; None where it fails, or where what it needs has failed."""
        if None in needed:
            return None
        try:
            value, texts = find(cfg, *needed)
        except Exception as error:  # whatever a `_target_` raises
            cause = error.__cause__ if isinstance(error, InstantiationException) else error
            wrong.append(f"{name}: {cause}")
            lines.append([f"{name}: fail", str(cause)])
            return None
        for row, text in texts.items():
            lines.append([f"{row}: pass", text])
        return value

    network = check("network", _network)
    edited = check("sites", _edited, network)
    batches = check("pairs", _batches, network)
    check("roles", _roles, edited, batches)
    memory = check("memory", _memory, network, edited, batches)
    Console().print(Table(f"Dry run of {cfg.name}", ["check", "outcome"], lines, n_words=2).rich())
    return DryRun(wrong, memory or {})


def _network(cfg: DictConfig) -> tuple[Network, Texts]:
    """The network; without weights, where there are any to load."""
    if "weights" in signature(get_object(cfg.network._target_)).parameters:
        network = instantiate(cfg.network, weights=False)
    else:
        network = untrained_network(cfg)[1]
    # Nobody can say what it answers, so every prompt counts as answered.
    vars(network)["answers_right"] = lambda prompts, _: np.ones(len(prompts), dtype=bool)
    return network, {"network": repr(network)}


def _edited(cfg: DictConfig, network: Network) -> tuple[Edited, Texts]:
    job = cfg.job._target_.rpartition(".")[2]
    if job in ("align", "atlas", "train_network"):
        check_config(cfg, trains_network=job == "train_network")
    edited: Edited = {}
    match job:
        case "align" | "train_network":
            edited[""] = instantiate(cfg.alignment)(network=network)
        case "atlas":
            axes = {name: cfg.job[name] for name in ("positions", "layers", "ranks", "seeds")}
            check_axes(axes)
            for site, cells in made_cells(cfg, network, **axes).items():
                edited |= {f"{site} {number}": cell for number, (_, cell) in enumerate(cells)}
        case "patch":
            for run in instantiate(cfg.job.maps).values():
                for site in _sites(network, run):
                    edit = Edit(site, VanillaIntervention())
                    edited[str(site)] = IntervenedModel(network, {cfg.variable: edit})
        case "Steering":
            for name, (site, intervention, _) in _trained(cfg, network).items():
                edited[name] = IntervenedModel(network, {name: Edit(site, intervention)})
    sites = sites_of(chain(*(model.edits.values() for model in edited.values())))
    texts = list(dict.fromkeys(map(str, sites))) or ["the config names none"]
    return edited, {"sites": ", ".join([*texts[:3], *["…"] * (len(texts) > 3)])}


def _trained(cfg: DictConfig, network: Network) -> dict[str, Any]:
    return instantiate(cfg.job).trained(network, instantiate(cfg.site))


def _sites(network: Network, run: Any) -> list[Site]:
    """The sites that a map of `job=patch` names; block outputs where it names no component."""
    options = run.keywords
    axes = ("components", "layers", "heads", "units", "cells")
    where = {name: options[name] for name in axes if name in options}
    # Spans and "tokens" stand for what only the prompts tell.
    places = options.get("positions", "tokens")
    where["positions"] = [None]
    if places != "tokens":
        where["positions"] = [place for place in places if place not in SPANS] or [None]
    contrast: Any = SimpleNamespace(module=network.model)
    sites = [cell.site for cell in grid(contrast, **where)]
    for role in {"query", "subject"} & options.keys():
        sites.append(Site("embedding_output", position=options[role]))
    return [*sites, *as_sites(options.get("receivers", ()))]


def _batches(cfg: DictConfig, network: Network) -> tuple[Batches, Texts]:
    """The pairs in tokens, with what the table says of pairs, prompts and answers."""
    pairs = {}
    if cfg.job._target_ == "iit.job.Steering":
        pairs = {name: trained[-1] for name, trained in _trained(cfg, network).items()}
    elif "path" in cfg.data or cfg.causal is not None:
        pairs = {"": pairs_of(cfg, network)}
    batches: Batches = {"": []}
    sizes = []
    # {label: its number of tokens}
    labels: dict[str, int] = {}
    for name, part in pairs.items():
        batches[name] = []
        for split in dict.fromkeys(part.dataset["split"]):
            encoded = EncodedPairs(part.split(split), part.variables, network)
            check_labels(network, encoded, split)
            batch = encoded.batch(range(len(encoded)))
            batches[name].append(batch)
            sizes.append(f"{len(encoded)} {split}")
            n_tokens = (batch["base"]["answer"] != IGNORED).flatten(1).sum(1).tolist()
            labels |= zip(map(repr, encoded.labels), n_tokens, strict=True)
    if not labels:
        return batches, {"pairs": "the config has none"}
    texts = {"pairs": f"{', '.join(sizes)}, whatever the network answers"}
    if lengths := prompt_lengths(batches):
        positions = str(n_positions(network.model)).replace("inf", "no limit of")
        texts["prompts"] = (
            f"{len(lengths)} of {min(lengths)} to {max(lengths)} tokens (median "
            f"{median(lengths):.0f}); the network has {positions} positions"
        )
    longer = [label for label, n in labels.items() if n > 1]
    texts["answers"] = f"{1 - len(longer) / len(labels):.0%} of {len(labels)} labels are one token"
    if longer:
        texts["answers"] += f", but not {', '.join(longer[:5])}"
    return batches, texts


def prompt_lengths(batches: Batches) -> list[int]:
    """The number of tokens of each distinct text."""
    prompts = set()
    for batch in chain(*batches.values()):
        for part in (batch["base"], *batch["sources"].values()):
            masks = part.get("attention_mask", ())
            for ids, mask in zip(part.get("input_ids", ()), masks, strict=True):
                prompts.add(tuple(ids[mask.bool()].tolist()))
    return list(map(len, prompts))


def _roles(cfg: DictConfig, edited: Edited, batches: Batches) -> tuple[bool, Texts]:
    """Check that every position is in every base and source, with as many tokens in both."""
    # Sites at the same positions select the same tokens.
    distinct = {}
    for name, model in edited.items():
        places = tuple(str(site.position) for site in sites_of(model.edits.values()))
        distinct[places] = model, batches.get(name, batches[""])
    for model, parts in distinct.values():
        model.store = SimpleNamespace(read=_stop)
        for batch in parts:
            base, _ = with_answer(model.network, prepare(model.network, batch["base"]))
            with suppress(_NoWeightsError):
                model.edited_run(base, batch["sources"] or None, batch["active"])
            if isinstance(model, Alignment) and list(model.parameters()):
                instantiate(cfg.module)(model).check(batch)
    return True, {"roles": ", ".join(sorted(set(chain(*distinct))))}


def _stop(*_: Any, **__: Any) -> None:
    raise _NoWeightsError


def _memory(
    cfg: DictConfig, network: Network, edited: Edited, batches: Batches
) -> tuple[dict[str, int], Texts]:
    parts = list(chain(*batches.values()))
    trains = cfg.job._target_ == "iit.job.train_network"
    # With edits, the base's own answer and the label are trained in one pass.
    n = cfg.trainer.batch_size * (1 + (trains and bool(edited[""].edits)))
    inputs = {}
    for name, tensor in (parts[0]["base"] if parts else {}).items():
        if name not in ("attention_mask", "positions", "answer"):
            inputs[name] = tensor.new_zeros(n, *tensor.shape[1:])
    needed = demand(network, list(edited.values()), inputs, sum(prompt_lengths(batches)), trains)
    in_all = needed | {"memory": sum(needed.values())}
    return needed, {name: f"{n / 2**20:,.0f} MiB" for name, n in in_all.items()}
