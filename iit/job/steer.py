"""The job `steer`: generation under directions and trained edits; strengths are chosen on
validation prompts and measured on others.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from iit.alignment import Alignment, fit
from iit.data import Pairs, freeze
from iit.intervened import Edit
from iit.intervention import (
    AdditionIntervention,
    Intervention,
    LoReFTIntervention,
    LowRankRotatedSpaceIntervention,
)
from iit.job.declared import check_set
from iit.job.setup import frozen_network, network_facts
from iit.network import LanguageModel
from iit.patching import Steered, contains, difference_of_means, frame_direction, random_directions
from iit.patching import steer as steered
from iit.report import curves, save_figure
from iit.result import Row, write_text
from iit.site import Site, resolve

log = logging.getLogger(__name__)

EFFECT = "about"
"""What the figure of the effect is called: the share of generations that hold one of the words."""


def steer(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    towards: Sequence[str],
    away: Sequence[str],
    words: Sequence[str],
    probe: str,
    answer: str,
    prompts: Mapping[str, Sequence[str]],
    strengths: Mapping[str, Sequence[float | int]],
    rank: int = 4,
    n_random: int = 5,
    max_ratio: float | int = 2.0,
    max_new_tokens: int = 20,
) -> tuple[list[Row], dict[str, Any]]:
    """Steer `cfg.network` at `cfg.site`, at every token, from texts like `away` to texts like
    `towards`.

    Methods: `difference_of_means`; `das`, the direction of a rank-1 frame trained so that a
    sentence of `away`, followed by `probe`, is answered with `answer` when its last token is given
    that of a sentence of `towards`, as long as the difference of means; `loreft`, trained to
    continue `towards`, at every token; and `random`, the mean over `n_random` directions as long as
    the difference of means. The last quarter of the sentences chooses the epochs.
    words: a generation that has one of them is about what is steered to. prompts: {"validation": …,
        "test": …}. strengths: of each method.
    max_ratio: of each method the strength of largest effect is taken whose perplexity is at most so
        many times that without an edit.

    Writes the sweep's curves with their data, both alignments, and `generations.json`. Returns the
    rows (all strengths on validation; on test the chosen ones, frozen in `choice.json`) and the
    facts. Raises ValueError for prompts that are in both splits, and a network without text.
    """
    both = sorted(set(prompts["validation"]) & set(prompts["test"]))
    if both:
        raise ValueError(f"A prompt is both for validation and for test: {both[0]!r}.")
    check_set(OmegaConf.missing_keys(cfg.site))
    frozen = frozen_network(cfg)
    network = frozen.network
    if not isinstance(network, LanguageModel):
        raise ValueError(
            f"Steering generates text; {cfg.network._target_} gives no language model."
        )
    site = instantiate(cfg.site)
    direction = difference_of_means(
        network, network.encode(list(towards)), network.encode(list(away)), site
    )
    methods: dict[str, Intervention | list[Intervention]] = {
        "difference_of_means": AdditionIntervention(direction)
    }
    fitted = {}
    for name, (place, intervention, pairs) in _trained(
        network, site, towards, away, probe, answer, rank
    ).items():
        alignment = Alignment(network, {name: Edit(place, intervention)})
        options = {
            "trainer": instantiate(cfg.trainer.trainer),
            "batch_size": 8,
            "max_epochs": cfg.trainer.max_epochs,
            "seed": cfg.seed,
        }
        best = fit(alignment, pairs, folder=folder, monitor="val/loss", **options)
        log.info(
            "%s: epoch %d of %d kept, validation loss %.3f",
            name,
            best.epoch + 1,
            best.n_epochs,
            best.value,
        )
        fitted[name] = best._asdict()
        alignment.save_pretrained(folder / name)
        methods[name] = intervention
    frame = methods["das"]
    assert isinstance(frame, Intervention)
    methods["das"] = AdditionIntervention(frame_direction(frame, direction))
    methods["random"] = [
        AdditionIntervention(each) for each in random_directions(direction, n_random, cfg.seed)
    ]
    effects, facts = (
        {EFFECT: contains(words)},
        {"experiment": cfg.name, "network": network.name, "seed": cfg.seed},
    )
    found = steered(
        network,
        list(prompts["validation"]),
        site,
        methods,
        strengths,
        effects,
        max_new_tokens=max_new_tokens,
    )
    rows = found.rows(site, split="validation", **facts)
    unedited, lines = found.table()[: len(found.metrics)], found.table()[len(found.metrics) :]
    # A strength of 0 is the network without an edit, whatever the method.
    lines += [line | {"method": method} for line in unedited for method in methods]
    picture = curves(lines, x="strength", metrics=list(found.metrics), title="validation prompts")
    save_figure(picture, folder / "steering", found.table())
    chosen = found.chosen(EFFECT, max_ratio)
    freeze(folder, {"strengths": chosen, "max_ratio": max_ratio})
    told = {"validation": found.generations()}
    examples = []
    if chosen:
        measured = {name: methods[name] for name in chosen}
        once = {name: [strength] for name, strength in chosen.items()}
        tested = steered(
            network,
            list(prompts["test"]),
            site,
            measured,
            once,
            effects,
            max_new_tokens=max_new_tokens,
        )
        rows += tested.rows(site, split="test", **facts)
        told["test"], examples = tested.generations(), _examples(tested)
    frozen.check()
    write_text(folder / "generations.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return rows, {
        "steering": {
            "chosen": chosen,
            "max_ratio": max_ratio,
            "examples": examples,
            "fit": fitted,
            "metrics": list(found.metrics),
        },
        "network": network_facts(network),
    }


def _trained(
    network: LanguageModel,
    site: Site,
    towards: Sequence[str],
    away: Sequence[str],
    probe: str,
    answer: str,
    rank: int,
) -> dict[str, tuple[Site, Intervention, Pairs]]:
    """Of what is trained: where, what, and on which pairs."""
    width = resolve(network.model, site).width
    assert width is not None

    def split(number: int, texts: Sequence[str]) -> str:
        return "validation" if number >= len(texts) * 3 // 4 else "train"

    probed = [
        {"split": split(i, away), "base": base + probe, "source": source + probe, "label": answer}
        for (i, base), (j, source) in product(enumerate(away), enumerate(towards))
        if split(i, away) == split(j, towards)
    ]
    continued = [
        {
            "split": split(i, towards),
            "base": " ".join(text.split()[:n]),
            "label": " " + text.split()[n],
        }
        for i, text in enumerate(towards)
        for n in range(2, len(text.split()))
    ]
    frame, target = LowRankRotatedSpaceIntervention(width, 1), LoReFTIntervention(width, rank)
    return {
        "das": (replace(site, position="last"), frame, Pairs.of(probed, "das")),
        "loreft": (site, target, Pairs.of(continued)),
    }


def _examples(tested: Steered) -> list[dict[str, Any]]:
    """The first two test prompts under each method."""
    return [
        {
            "method": method,
            "strength": strength,
            "prompt": tested.prompts[row],
            "text": tested.texts[point][row],
        }
        for row in range(min(2, len(tested.prompts)))
        for point, (method, strength) in enumerate(tested.points)
    ]
