"""A dry run: a job checked with configuration and tokenizer alone, and the memory it will need."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from iit.alignment.labels import check_labels
from iit.batch import IGNORED
from iit.data import EncodedPairs
from iit.intervened import Edit, IntervenedModel
from iit.intervened.edit import as_sites, sites_of
from iit.intervention import VanillaIntervention
from iit.job.atlas import made_cell
from iit.job.declared import check_config
from iit.job.memory import demand
from iit.job.patch import accepted
from iit.job.setup import pairs_of
from iit.job.train_network import untrained_network
from iit.patching import trace
from iit.patching.grid import grid, n_blocks
from iit.result.table import Table


class DryRun(NamedTuple):
    """What a dry run says.

    wrong: a sentence for each check that fails.
    memory: {what needs it: bytes}; empty where a check fails.
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
    wrong, memory, table = [], {}, {}

    @contextmanager
    def check(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a `_target_` raises
            cause = error.__cause__ if isinstance(error, InstantiationException) else error
            table[f"{name}: fail"] = str(cause)
            wrong.append(f"{name}: {cause}")

    network: Any = None
    models, batches, lengths = [], [], []
    with check("network"):
        network = _network(cfg)
        table["network: pass"] = repr(network)
    if not wrong:
        with check("sites"):
            models = _models(cfg, network)
            names = [str(site) for model in models for site in sites_of(model.edits.values())]
            table["sites: pass"] = ", ".join(names[:3]) or "the config names none"
        with check("pairs"):
            batches, table["pairs: pass"] = _batches(cfg, network)
            lengths = _lengths(batches)
            table["prompts: pass"] = f"{len(lengths)} of {lengths[0]} to {lengths[-1]} tokens"
    if not wrong:
        with check("roles"):
            for model, batch in product(models, batches):
                stop = network.model.register_forward_pre_hook(_stop)
                with stop, suppress(_NoWeightsError):
                    model.answer_logits(batch["base"], batch["sources"] or None, batch["active"])
                if list(model.parameters()):
                    instantiate(cfg.module)(model).check(batch)
            table["roles: pass"] = "in every base and source"
        with check("memory"):
            memory = demand(cfg, network, models, batches, sum(lengths))
            for name, n in memory.items():
                table[f"{name}: pass"] = f"{n / 2**20:,.0f} MiB"
    lines = list(table.items())
    Console().print(Table(f"Dry run of {cfg.name}", ["check", "outcome"], lines, n_words=2).rich())
    return DryRun(wrong, memory)


def _stop(*_: Any) -> None:
    raise _NoWeightsError


def _network(cfg: DictConfig) -> Any:
    """The network; without weights, where there are any to load."""
    if cfg.network._target_.endswith((".load_network", ".trained_network")):
        network = instantiate(cfg.network, weights=False)
    else:
        network = untrained_network(cfg)
    # Nobody can say what it answers, so every prompt counts as answered.
    vars(network)["answers_right"] = lambda prompts, _: np.full(len(prompts), fill_value=True)
    return network


def _models(cfg: DictConfig, network: Any) -> list[IntervenedModel]:
    """What the job edits, as far as its config says."""
    job, models, sites = cfg.job, [], []
    match job._target_.rpartition(".")[2]:
        case "align" | "train_network" as name:
            check_config(cfg, trains_network=name == "train_network")
            models.append(instantiate(cfg.alignment)(network=network))
            instantiate(cfg.score).check(models[0])
        case "atlas":
            check_config(cfg, trains_network=False)
            layers = range(n_blocks(network.model)) if job.layers is None else job.layers
            axes: Any = layers, job.positions, job.ranks or (None,), job.seeds or (cfg.seed,)
            for layer, position, rank, seed in product(*axes):
                site = instantiate(cfg.site, layer=layer, position=position)
                models.append(made_cell(cfg, network, site, rank, seed))
        case "patch":
            for run in instantiate(job.maps).values():
                where = accepted(grid, {"positions": [None]} | run.keywords)
                # A trace works out its tokens from the prompts.
                if run.func is trace:
                    where["positions"] = [None]
                contrast: Any = SimpleNamespace(module=network.model)
                sites += [cell.site for cell in grid(contrast, **where)]
                sites += as_sites(run.keywords.get("receivers", ()))
        case "Steering":
            sites.append(instantiate(cfg.site))
    if sites:
        edit = Edit(list(dict.fromkeys(sites)), VanillaIntervention())
        models.append(IntervenedModel(network, {cfg.variable: edit}))
    return models


def _batches(cfg: DictConfig, network: Any) -> tuple[list[dict[str, Any]], str]:
    """Each split of the config's pairs as one batch; and how many pairs and labels there are."""
    if "path" not in cfg.data and cfg.causal is None:
        return [], "the config has none"
    # What a network writes, or finds likely, only a run can tell.
    cfg = cfg.copy()
    cfg.score.kind = "argmax"
    pairs = pairs_of(cfg, network)
    batches, labels = [], {}
    for split in dict.fromkeys(pairs.dataset["split"]):
        encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
        check_labels(network, encoded, split)
        batches.append(encoded.batch(range(len(encoded))))
        labels |= zip(map(str, encoded.labels), batches[-1]["base"]["answer"], strict=True)
    longer = [label for label, tokens in labels.items() if (tokens != IGNORED).sum() > 1]
    share = f"{len(longer)} of {len(labels)} labels have several tokens {longer[:5] or ''}"
    return batches, f"{len(pairs.dataset)}; {share}"


def _lengths(batches: list[dict[str, Any]]) -> list[int]:
    """The number of tokens of each distinct text, in order; [0] where there is none."""
    texts = set()
    for batch in batches:
        for part in (batch["base"], *batch["sources"].values()):
            if "input_ids" in part:
                for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True):
                    texts.add(tuple(ids[mask.bool()].tolist()))
    return sorted(map(len, texts)) or [0]
