"""The investigation `ground_truth`: every method on networks whose true subspaces are known."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs, freeze, hold_out
from iit.evaluation import describe, evaluate, outcomes, subspaces, train_alike, verdict
from iit.evaluation.diagnostics import spread
from iit.evaluation.illusion import spans, views
from iit.evaluation.rows import Group, row_of, scores
from iit.evaluation.subspace import distances
from iit.intervened import Edit
from iit.intervention import VanillaIntervention
from iit.investigation.ground_truth_report import ground_truth_figure, ground_truth_tables
from iit.job.setup import scoring, trainer_options
from iit.report import save_figure
from iit.result import Row, where
from iit.site import resolve

log = logging.getLogger(__name__)


def ground_truth(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    cases: Mapping[str, Any],
    common: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    seeds: int = 3,
) -> tuple[list[Row], dict[str, Any]]:
    """Fit each method in each case from several seeds, and say how far its subspace is from the
    truth and what the verdict says.

    cases: name → {network, causal, variable, site, rank: of the true subspace, inert: {site,
        units}: what the claim declares not to matter, wrong_site, truth: units "first:stop", or
        null for `network.model.truth`}, over what is `common`. A network without a truth for the
        variable realises no such claim.
    methods: files of the config group `method`, {intervention, module, trained}; all by default.

    Rows: network is the case, method the method's name. Test IIA pooled over seeds (control null).
    Control `truth`: how far the found subspace is from the true one
    (`iit.evaluation.subspace.distances`; value: mean over seeds; low and high: their extremes;
    n: seeds), also /natural and /read, in the space in which natural activations vary and in what
    is read behind the site. The rows of the first seed's `trust=full`. Facts: the verdict of each
    case and method.

    Raises ValueError for unknown methods.
    """
    known = {
        Path(f.name).stem: f
        for f in files("iit.conf").joinpath("method").iterdir()
        if f.name.endswith(".yaml")
    }
    unknown = sorted(set(methods or ()) - set(known))
    if unknown:
        raise ValueError(
            f"job.methods: {unknown} are no files of conf/method; there are {sorted(known)}."
        )
    rows: list[Row] = []
    verdicts: dict[str, Any] = {}
    for case, own in cases.items():
        told: Any = OmegaConf.merge(common, own)
        for name in methods or sorted(known):
            method: Any = OmegaConf.merge(
                {"rank": told.rank, "trained": True},
                OmegaConf.create(known[name].read_text(encoding="utf-8")),
            )
            with _one_thread():
                found, judged = _scored(cfg, folder, told, method, seeds)
            rows += [replace(row, network=case, method=name) for row in found]
            verdicts[f"{case}/{name}"] = judged
            log.info("%s, %s: %s", case, name, judged["line"])
    save_figure(ground_truth_figure(rows, verdicts), folder / "ground_truth", rows)
    tables = [table.to_dict() for table in ground_truth_tables(rows, verdicts)]
    return rows, {"verdicts": verdicts, "tables": tables}


@contextmanager
def _one_thread() -> Iterator[None]:
    """These networks are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scored(
    cfg: DictConfig, folder: Path, case: Any, method: Any, seeds: int
) -> tuple[list[Row], dict[str, Any]]:
    task, network = instantiate(case.causal), instantiate(case.network)
    pairs, held_out = hold_out(
        instantiate(cfg.data, variable=case.variable)(task=task, network=network)
    )
    site = instantiate(case.site)
    width = resolve(network.model, site).width
    part = instantiate(case.inert.site)
    inert = {
        "rest": Edit(
            part, VanillaIntervention(resolve(network.model, part).width, case.inert.units)
        )
    }
    claims = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        made = instantiate(method.intervention)(width=width).requires_grad_(method.trained)
        claims.append(Alignment(network, {case.variable: Edit(site, made)}, inert=inert))
    refit = partial(
        _trained,
        trained=method.trained,
        module=instantiate(method.module),
        folder=folder,
        **trainer_options(cfg),
    )
    refit({str(seed): claim for seed, claim in enumerate(claims)}, pairs, 0)
    pairs = held_out.opened(freeze(folder, {"reported": "every case, method and seed"}))
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    right = np.stack([outcomes(claim, encoded).right[None] for claim in claims], 1)
    facts = describe(claims[0], pairs, pairs.variables) | {
        "seed": None,
        "split": "test",
        "experiment": cfg.name,
    }
    every = np.ones(len(encoded), dtype=bool)
    scored = scores({None: right[:, 0], "seeds": right}, Group(encoded, every, facts, 2000))
    pooled = [replace(row, control=None) for row in where(scored, control="seeds")]
    truth = _truth(case, network, width)
    frames = [found[case.variable] for found in map(subspaces, claims) if case.variable in found]
    if truth is not None and frames:
        # What varies and what is read at the site depends on no claim.
        spaces = spans(claims[0], pairs, encoded, cfg.trainer.eval_batch_size)
        for suffix, (known, *seen) in views([truth, *frames], case.variable, spaces).items():
            figures = [distances(frame, known) for frame in seen]
            for metric in figures[0]:
                figure = spread([each[metric] for each in figures])
                pooled.append(row_of(facts, figure, metric + suffix, "all", "truth"))
    elsewhere: Any = OmegaConf.to_container(case.wrong_site)
    trust = replace(instantiate(cfg.trust), full=True, seeds=seeds, wrong_site=elsewhere)
    full = evaluate(claims[0], pairs, trust, refit=refit, **scoring(cfg))
    (judged,) = verdict(full, trust.thresholds)
    return pooled + full, judged.to_dict() | {"line": judged.line()}


def _trained(
    alignments: Mapping[str, Alignment], pairs: Any, seed: int, *, trained: bool, **options: Any
) -> None:
    """`train_alike`, or nothing at all where a method trains nothing."""
    for alignment in alignments.values():
        alignment.requires_grad_(trained)
    train_alike(alignments, pairs, seed, **options)


def _truth(case: Any, network: Any, width: int | None) -> Tensor | None:
    if case.truth is None:
        return network.model.truth.get(case.variable)
    first, _, stop = case.truth.partition(":")
    return torch.eye(width or 0)[:, int(first) : int(stop)]
