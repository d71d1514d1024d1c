"""The job `steer`: generation under directions and trained edits.

Strengths are chosen on validation prompts and measured on test prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from iit.alignment import Alignment, fit
from iit.data import Pairs, freeze
from iit.intervened import Edit, IntervenedModel
from iit.intervention import (
    AdditionIntervention,
    Intervention,
    LoReFTIntervention,
    LowRankRotatedSpaceIntervention,
)
from iit.job.declared import check_set
from iit.job.setup import frozen_network, network_facts
from iit.network import LanguageModel
from iit.patching import (
    Steered,
    difference_of_means,
    frame_direction,
    random_directions,
    steer,
)
from iit.report import curves, save_figure
from iit.result import Row, write_text
from iit.site import Site, resolve

EFFECT = "about"
"""The name of the effect's metric: the share of generations that are right for the words."""


@dataclass(frozen=True)
class Steering:
    """Steer `cfg.network` at `cfg.site` from texts like `away` to texts like `towards`.

    Activations are edited at every token. The methods:

    - difference_of_means: adds the mean activation over `towards` minus that over `away`.
    - das: adds the direction of a trained frame of rank 1, as long as the difference of means. The
      frame is trained on sentences of `away` that are followed by `probe`. At the last token it
      swaps in what a sentence of `towards` has there. The network should then give `answer`.
    - loreft: applies an edit that was trained, at every token, to continue the sentences of
      `towards`.
    - random: adds a random direction as long as the difference of means. Its figures are means over
      `n_random` directions.

    The last quarter of the sentences chooses the epochs.

    Arguments:
        towards: sentences like what is steered to.
        away: sentences like what is steered from.
        words: what `cfg.score` compares a generation with, as a pair's labels. One that has any of
            them is about what is steered to.
        probe: what follows a sentence in the training of `das`.
        answer: what should follow the probe after a sentence of `towards`.
        prompts: {"validation": …, "test": …}, which the network continues.
        strengths: {method: the strengths that are tried}.
        rank: of LoReFT.
        n_random: how many random directions there are.
        chat: whether each prompt is the user's message in a conversation, and the network replies.
        max_ratio: for each method, the strength of largest effect is chosen whose perplexity is at
            most this many times the one without an edit.
    """

    towards: Sequence[str]
    away: Sequence[str]
    words: Sequence[str]
    probe: str
    answer: str
    prompts: Mapping[str, Sequence[str]]
    strengths: Mapping[str, Sequence[float | int]]
    rank: int = 4
    n_random: int = 5
    max_ratio: float | int = 2.0
    chat: bool = False

    def __call__(
        self, cfg: DictConfig, folder: Path, loggers: list[Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Run the job.

        It writes the sweep's curves with their data, both alignments, and `generations.json`.

        Arguments:
            folder: the run's folder.

        Returns:
            The rows, and the run's facts. On validation prompts there are rows for all strengths.
            On test prompts there are rows for the chosen ones, which are frozen in `choice.json`.

        Raises:
            ValueError: for a prompt in both splits, for a network without text, and for what
                `iit.patching.steer` refuses.
        """
        shared = sorted(set(self.prompts["validation"]) & set(self.prompts["test"]))
        if shared:
            raise ValueError(f"A prompt is both for validation and for test: {shared[0]!r}.")
        check_set(OmegaConf.missing_keys(cfg.site))
        frozen, score = frozen_network(cfg), instantiate(cfg.score)
        network: Any = frozen.network
        score.check(IntervenedModel(network, {}))
        site = instantiate(cfg.site)
        towards = network.encode(list(self.towards))
        away = network.encode(list(self.away))
        # Tensor[width]
        direction = difference_of_means(network, towards, away, site)
        methods: dict[str, Intervention | list[Intervention]] = {
            "difference_of_means": AdditionIntervention(direction)
        }
        fitted = {}
        for name, (trained_site, intervention, pairs) in self._trained(network, site).items():
            alignment = Alignment(network, {name: Edit(trained_site, intervention)})
            options = {
                "trainer": instantiate(cfg.trainer.trainer),
                "batch_size": 8,
                "max_epochs": cfg.trainer.max_epochs,
                "seed": cfg.seed,
            }
            best = fit(alignment, pairs, folder=folder, monitor="val/loss", **options)
            fitted[name] = best._asdict()
            alignment.save_pretrained(folder / name)
            methods[name] = intervention
        # The swap that was trained needs a source, and generation has none: its direction is added.
        frame = methods["das"]
        assert isinstance(frame, Intervention)
        methods["das"] = AdditionIntervention(frame_direction(frame, direction))
        methods["random"] = [
            AdditionIntervention(vector)
            for vector in random_directions(direction, self.n_random, cfg.seed)
        ]

        def reply_to(prompt: str) -> Any:
            return network.render([{"role": "user", "content": prompt}])

        pair = {"label": self.words}
        measured = partial(
            steer,
            network,
            site=site,
            effects={EFFECT: lambda texts: [score.is_right(text, pair) for text in texts]},
            written=reply_to if self.chat else str,
            max_new_tokens=score.max_new_tokens,
        )
        facts = {"experiment": cfg.name, "network": network.name, "seed": cfg.seed}
        swept = measured(self.prompts["validation"], methods=methods, strengths=self.strengths)
        rows = swept.rows(site, split="validation", **facts)
        table, metrics = swept.table(), list(swept.metrics)
        # The table begins with the network without an edit, a line for each metric.
        lines = table[len(metrics) :]
        for unedited, method in product(table[: len(metrics)], methods):
            # A strength of 0 is the network without an edit, whatever the method.
            lines.append(unedited | {"method": method})
        picture = curves(lines, x="strength", metrics=metrics, title="validation prompts")
        save_figure(picture, folder / "steering", table)
        # {method: its strength}; a method without a fluent strength is not there.
        chosen = swept.chosen(EFFECT, self.max_ratio)
        freeze(folder, {"strengths": chosen, "max_ratio": self.max_ratio})
        generations = {"validation": swept.generations()}
        examples = []
        # If no method is fluent at any strength, nothing is measured on test.
        if chosen:
            tested = measured(
                self.prompts["test"],
                methods={name: methods[name] for name in chosen},
                strengths={name: [strength] for name, strength in chosen.items()},
            )
            rows += tested.rows(site, split="test", **facts)
            generations["test"], examples = tested.generations(), _examples(tested)
        frozen.check()
        write_text(
            folder / "generations.json",
            json.dumps(generations, indent=1, ensure_ascii=False) + "\n",
        )
        return rows, {
            "steering": {
                "chosen": chosen,
                "max_ratio": self.max_ratio,
                "examples": examples,
                "fit": fitted,
                "metrics": metrics,
            },
            "network": network_facts(network),
        }

    def _trained(
        self, network: LanguageModel, site: Site
    ) -> dict[str, tuple[Site, Intervention, Pairs]]:
        """What each trained method trains: {method: (its site, its intervention, its pairs)}."""
        width = resolve(network.model, site).width
        assert width is not None

        def split(number: int, texts: Sequence[str]) -> str:
            # The last quarter of the sentences is for validation.
            return "validation" if number >= len(texts) * 3 // 4 else "train"

        # Every sentence of `away` with every one of `towards`, within a split.
        probed = []
        for (i, base), (j, source) in product(enumerate(self.away), enumerate(self.towards)):
            pair = {
                "split": split(i, self.away),
                "base": base + self.probe,
                "source": source + self.probe,
                "label": self.answer,
            }
            if pair["split"] == split(j, self.towards):
                probed.append(pair)
        # Every beginning of two words or more; the label is the word that follows.
        continued = []
        for i, text in enumerate(self.towards):
            words = text.split()
            for n in range(2, len(words)):
                base, label = " ".join(words[:n]), " " + words[n]
                continued.append({"split": split(i, self.towards), "base": base, "label": label})
        frame = LowRankRotatedSpaceIntervention(width, 1)
        target = LoReFTIntervention(width, self.rank)
        # The frame is trained at the last token alone; `loreft` edits where the site says.
        return {
            "das": (replace(site, position="last"), frame, Pairs.of(probed, "das")),
            "loreft": (site, target, Pairs.of(continued)),
        }


def _examples(tested: Steered) -> list[dict[str, Any]]:
    """The first two test prompts and what each method makes of them, as facts of the run."""
    examples = []
    for row, prompt in enumerate(tested.prompts[:2]):
        # The first point is the network without an edit.
        for (method, strength), texts in zip(tested.points, tested.texts, strict=True):
            point = {"method": method, "strength": strength}
            examples.append(point | {"prompt": prompt, "text": texts[row]})
    return examples
