"""The investigation `ground_truth`: every method on networks whose true subspaces are known."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
from iit.evaluation.angles import distances
from iit.evaluation.diagnostics import spread
from iit.evaluation.illusion import spans, views
from iit.evaluation.rows import Group, row_of, scores
from iit.intervened import Edit
from iit.intervention import VanillaIntervention
from iit.investigation.ground_truth_report import ground_truth_figure, ground_truth_tables
from iit.job.setup import evaluate_options, trainer_options
from iit.report import save_figure
from iit.result import TRAINED, Arm, Row, where
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
    """Fit each method in each case, and compare its subspace with the true one.

    A method is fitted from several seeds. The rows say how far its subspaces are from the truth.
    The facts hold the verdict on it.

    Arguments:
        folder: the run's folder.
        cases: {name: case}. A case has these keys, which stand over those of `common`:
            network, causal, site: what `_target_` makes.
            variable: the variable that is claimed.
            rank: of the true subspace.
            inert: {site, units}, what the claim declares not to matter.
            wrong_site: as `Trust.wrong_site`.
            truth: the true units as "first:stop"; null for the network's own `model.truth`. A
            network without a truth for the variable does not realise the claim.
        common: the keys that cases share.
        methods: entries of `conf/methods.yaml`, each {intervention, module, trained}; all
            by default.
        seeds: how many starts each method has.

    Returns:
        The rows and the facts. A row's network is the case, its method the method's name. There
        are three kinds of rows:

        - Test IIA, pooled over the seeds (no control).
        - Control `truth`: the `distances` of the subspaces from the true one. Value is the mean
          over seeds, low and high are the extremes, n counts the seeds. Metrics that end with
          /natural are taken in the space in which natural activations vary. Those that end with
          /read are taken in what is read behind the site.
        - The rows of the first seed with `trust=full`.

        The facts are the verdict on the first seed, for each case and method, and the tables.

    Raises:
        ValueError: for unknown methods.
    """
    table = OmegaConf.load(Path(__file__).parents[1] / "conf/methods.yaml")
    known: Any = OmegaConf.to_container(table)
    unknown = sorted(set(methods or ()) - set(known))
    if unknown:
        raise ValueError(
            f"job.methods: {unknown} are no entries of conf/methods.yaml; there are "
            f"{sorted(known)}."
        )
    rows: list[Row] = []
    verdicts: dict[str, Any] = {}
    for case, entries in cases.items():
        merged: Any = OmegaConf.merge(common, entries)
        for name in methods or sorted(known):
            # An entry may refer to ${rank}, and says `trained: false` if nothing is.
            method: Any = OmegaConf.merge({"rank": merged.rank, "trained": True}, known[name])
            with _one_thread():
                scored, judged = _scored(cfg, folder, merged, method, seeds)
            # The names that `describe` gives would be the same for several cases and methods.
            rows += [replace(row, network=case, method=name) for row in scored]
            verdicts[f"{case}/{name}"] = judged
            log.info("%s, %s: %s", case, name, judged["line"])
    save_figure(ground_truth_figure(rows, verdicts), folder / "ground_truth", rows)
    tables = [table.to_dict() for table in ground_truth_tables(rows, verdicts)]
    return rows, {"verdicts": verdicts, "tables": tables}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: these networks are so small that threads would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scored(
    cfg: DictConfig, folder: Path, case: Any, method: Any, seeds: int
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one method in one case, and the verdict with its line.

    Arguments:
        case: the case, over what is common.
        method: the method's file, with the rank of the true subspace.
    """
    task, network = instantiate(case.causal), instantiate(case.network)
    pairs, held_out = hold_out(
        instantiate(cfg.data, variable=case.variable)(task=task, network=network)
    )
    site = instantiate(case.site)
    width = resolve(network.model, site).width
    # The claim is that these units do not matter; `units: null` stands for the whole site.
    inert_site = instantiate(case.inert.site)
    inert = {
        "rest": Edit(
            inert_site,
            VanillaIntervention(resolve(network.model, inert_site).width, case.inert.units),
        )
    }
    # One claim for each seed, which draws its weights.
    claims = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        intervention = instantiate(method.intervention)(width=width).requires_grad_(method.trained)
        claims.append(Alignment(network, {case.variable: Edit(site, intervention)}, inert=inert))
    refit = partial(
        _trained,
        trained=method.trained,
        module=instantiate(method.module),
        folder=folder,
        **trainer_options(cfg),
    )
    refit({str(seed): claim for seed, claim in enumerate(claims)}, pairs, 0)
    # Nothing is chosen: everything that was fitted is reported.
    pairs = held_out.opened(freeze(folder, {"reported": "every case, method and seed"}))
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    # bool[n, seeds]
    by_claim = [outcomes(claim, encoded).right[None] for claim in claims]
    right = np.stack(by_claim, 1)
    facts = describe(claims[0], pairs, pairs.variables) | {
        "seed": None,
        "split": "test",
        "experiment": cfg.name,
    }
    every = np.ones(len(encoded), dtype=bool)
    # The pooled seeds become the claim's own figure; the first seed has its rows in `full`.
    arms = {TRAINED: right[:, 0], Arm("seeds"): right}
    scored = scores(arms, Group(encoded, every, facts, 2000))
    pooled = [replace(row, control=None) for row in where(scored, control="seeds")]
    truth = _truth(case, network, width)
    # A method that swaps no linear subspace has no frames, and no distance.
    frames = []
    for by_variable in map(subspaces, claims):
        if case.variable in by_variable:
            frames.append(by_variable[case.variable])
    if truth is not None and frames:
        # What varies and what is read at the site depends on no claim.
        training = EncodedPairs(pairs.split("train"), pairs.variables, network)
        spaces = spans(claims[0], encoded, training, cfg.trainer.eval_batch_size)
        for suffix, (true_view, *view) in views([truth, *frames], case.variable, spaces).items():
            by_seed = [distances(frame, true_view) for frame in view]
            for metric in by_seed[0]:
                figure = spread([figures[metric] for figures in by_seed])
                pooled.append(row_of(facts, figure, metric + suffix, "all", Arm("truth")))
    # As `trust=full` does it, with the case's wrong site and the job's number of seeds.
    elsewhere = OmegaConf.to_container(case.wrong_site)
    trust = replace(instantiate(cfg.trust), full=True, seeds=seeds, wrong_site=elsewhere)
    full = evaluate(claims[0], pairs, trust, refit=refit, **evaluate_options(cfg))
    (judged,) = verdict(full, trust.thresholds)
    return pooled + full, judged.to_dict() | {"line": judged.line()}


def _trained(
    alignments: Mapping[str, Alignment], pairs: Any, seed: int, *, trained: bool, **options: Any
) -> None:
    """Call `train_alike`; the weights of a method that trains nothing are frozen first.

    The weights of controls are drawn anew, and drawn weights are trainable.
    """
    for alignment in alignments.values():
        alignment.requires_grad_(trained)
    train_alike(alignments, pairs, seed, **options)


def _truth(case: Any, network: Any, width: int | None) -> Tensor | None:
    """Orthonormal columns of the true subspace, Tensor[width, rank]; None where there is none."""
    if case.truth is None:
        return network.model.truth.get(case.variable)
    first, _, stop = case.truth.partition(":")
    return torch.eye(width or 0)[:, int(first) : int(stop)]
