"""Verdicts of `trust=full` on claims whose truth is known, as JSON: `python planted_claims.py 5
clean wrong`, of five seeds.

A process of its own has no type checks of the tests'.
"""

import json
import logging
import sys
import warnings
from dataclasses import replace
from functools import partial

import lightning as L
import torch
from datasets import concatenate_datasets

import iit
from iit.alignment import DAS
from iit.data import Pairs
from iit.evaluation import Trust, evaluate, train_alike, verdict
from iit.evaluation.controls import shuffled
from iit.network import planted, untrained
from iit.tasks import modular_sum

SITE, AROUND = iit.Site(module="read", side="input"), iit.Site(module="bypass")
PARENTS = iit.Site(module="embedding")
WIDTH = 32
RANKS = {"wide": 6, "parents": 4}
"""Of claims whose rank is not the true one, 2: of the value, and of both numbers that it is the sum
of.
"""
TRUST = Trust(full=True, resamples=200, random_subspaces=2, interventions=500)


def trained_for(max_epochs, lr):
    return partial(
        train_alike,
        batch_size=64,
        max_epochs=max_epochs,
        trainer=partial(L.Trainer, enable_progress_bar=False, enable_model_summary=False),
        module=partial(DAS, optimizer=partial(torch.optim.Adam, lr=lr)),
    )


REFITS = {"untaught": trained_for(1, 0.0), "memorised": trained_for(60, 1e-2)}
"""Of claims that are not trained as the others are."""


def claimed(claim, network, pairs, seed, refit):
    """The alignment of a claim, trained as far as it is to be."""
    torch.manual_seed(seed)
    site = PARENTS if claim == "parents" else SITE
    intervention = iit.LowRankRotatedSpaceIntervention(WIDTH, RANKS.get(claim, 2))
    if claim == "far":
        intervention = iit.AdditionIntervention(width=WIDTH)
    if claim == "memorised":
        intervention = iit.RevNetIntervention(WIDTH, 16, depth=4)
    inert = {"bypass": iit.Edit(AROUND, iit.VanillaIntervention())}
    alignment = iit.Alignment(network, {"first": iit.Edit(site, intervention)}, inert=inert)
    if claim == "other":  # the subspace of the second value, under the first one's name
        taught = iit.Alignment(network, {"second": alignment.edits["first"]})
        refit({"": taught}, sampled(network, "second", seed), seed)
    else:
        refit({"": alignment}, pairs, seed)
    return alignment


def sampled(network, variable, seed, n_train=1280):
    sizes = {"n_train": n_train, "n_val": 100, "n_test": 400}
    return Pairs.sample(
        modular_sum(3), network, variable=variable, right_only=False, seed=seed, **sizes
    )


def chosen_on_training(pairs):
    """The pairs with those of training for validation, too: the epoch is chosen on them."""
    training = pairs.split("train")
    renamed = training.remove_columns("split")
    validation = renamed.add_column("split", ["validation"] * len(training))
    splits = [training, validation, pairs.split("test")]
    return replace(pairs, dataset=concatenate_datasets(splits))


def judged(claim, seed):
    network = planted(
        3, WIDTH, claim if claim in ("wrong", "leaky", "illusion") else "clean", seed=seed
    )
    network = untrained(network, seed) if claim == "random_network" else network
    pairs = sampled(network, "first", seed)
    if claim == "memorised":
        pairs = chosen_on_training(shuffled(sampled(network, "first", seed, n_train=100), seed))
    if claim == "shuffled_label":
        pairs = shuffled(pairs, seed)
    refit = REFITS.get(claim, trained_for(6, 5e-2))
    alignment = claimed(claim, network, pairs, seed, refit)
    rows = evaluate(alignment, pairs, TRUST, seed=seed, refit=refit, batch_size=200)
    (found,) = verdict(rows)
    return found.to_dict() | {
        "line": found.line(),
        "controls": sorted({str(row.arm) for row in rows if row.control}),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # as fast for networks of this size
    json.dump(
        {
            claim: [judged(claim, seed) for seed in range(int(sys.argv[1]))]
            for claim in sys.argv[2:]
        },
        sys.stdout,
    )
