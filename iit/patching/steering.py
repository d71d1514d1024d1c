"""Steering: a direction or a trained edit turned up during generation, its effect beside what it costs in fluency."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervened import IntervenedModel, capture
from iit.intervention import Frame, Intervention, LambdaIntervention
from iit.network import LanguageModel, Network
from iit.network.answering import IGNORED
from iit.result import Interval, Row, clustered_interval
from iit.site import Site

Effect = Callable[[Sequence[str]], Sequence[float]]
"""Generated texts (without their prompts) → a figure for each."""
NOTHING = "no_intervention"


@final
@dataclass(frozen=True, eq=False)
class Steered:
    """Generations under each method × strength, prompt by prompt.

    points: (method, strength) in order; the first is (`NOTHING`, 0). values: metric → float[point, prompt].
    prompts: the prompts. texts: of each point what was generated for each prompt (of several edits under one name, the first's).
    """

    points: tuple[tuple[str, float], ...]
    values: Mapping[str, np.ndarray]
    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    def interval(self, point: int, metric: str) -> Interval:
        """Mean over prompts with its 95% interval; of "perplexity" the exponential of those of "negative_log_likelihood"."""
        if metric == "perplexity":
            found = self.interval(point, "negative_log_likelihood")
            return found._replace(value=float(np.exp(found.value)), low=float(np.exp(found.low)), high=float(np.exp(found.high)))
        values = self.values[metric][point]
        bounded = bool(np.isin(values, (0.0, 1.0)).all())
        return clustered_interval(values, np.arange(len(values)), bounded=bounded)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured, the effects first."""
        return (*(name for name in self.values if name != "negative_log_likelihood"), "perplexity")

    def table(self) -> list[dict[str, Any]]:
        """A line for each point and metric: method, strength, metric, value, low, high, n."""
        return [
            {"method": method, "strength": strength, "metric": metric, **self.interval(point, metric)._asdict()}
            for point, (method, strength) in enumerate(self.points)
            for metric in self.metrics
        ]

    def rows(self, site: Site, **facts: Any) -> list[Row]:
        """As rows of `metrics.json`: the strength stands in the method (`difference_of_means, strength 2`)."""
        known = {"variable": None, "seed": None, "rank": None, "task": None, "subset": "all"} | facts
        place = {"component": site.component, "layer": site.layer, "head": site.head, "position": site.position}
        return [
            Row(
                **known,
                **(dict.fromkeys(place) if line["method"] == NOTHING else place),
                method=None if line["method"] == NOTHING else f"{line['method']}, strength {line['strength']:g}",
                control=NOTHING if line["method"] == NOTHING else None,
                **{name: line[name] for name in ("metric", "value", "low", "high", "n")},
            )
            for line in self.table()
        ]

    def generations(self) -> list[dict[str, Any]]:
        """A line for each point and prompt: method, strength, prompt, text, and its figures."""
        return [
            {"method": method, "strength": strength, "prompt": prompt, "text": self.texts[point][row]}
            | {name: float(values[point, row]) for name, values in self.values.items()}
            for point, (method, strength) in enumerate(self.points)
            for row, prompt in enumerate(self.prompts)
        ]

    def chosen(self, effect: str, max_ratio: float | int) -> dict[str, float]:
        """Of each method the strength of largest effect whose perplexity is at most `max_ratio` times that without an edit.

        Of equal effects the smallest strength; methods none of whose strengths are that fluent are left out.
        """
        bound, found = max_ratio * self.interval(0, "perplexity").value, {}
        for method in dict.fromkeys(name for name, _ in self.points[1:]):
            fluent = [
                (-self.interval(i, effect).value, strength)
                for i, (name, strength) in enumerate(self.points)
                if name == method and self.interval(i, "perplexity").value <= bound
            ]
            if fluent:
                found[method] = min(fluent)[1]
        return found


def steer(
    network: LanguageModel,
    prompts: Sequence[str],
    site: Site,
    methods: Mapping[str, Intervention | Sequence[Intervention]],
    strengths: Sequence[float | int] | Mapping[str, Sequence[float | int]],
    effects: Mapping[str, Effect],
    *,
    scope: str = "all",
    max_new_tokens: int = 20,
    batch_size: int = 32,
    **options: Any,
) -> Steered:
    """Generate under each method at each strength: h' = h + strength · (f(h) − h) (arXiv 2308.10248, 2312.06681, 2404.03592).

    methods: name → f, an intervention without a source: `AdditionIntervention(direction)`, a trained `LoReFTIntervention`. Of several
        under one name (random directions, say) the figures are averaged, prompt by prompt.
    strengths: of all methods, or of each. 0 changes nothing; 1 is the intervention itself.
    effects: name → what is read of the generated texts, as `contains` gives it.
    scope, options: as `IntervenedModel.generate` takes them; greedy by default.

    Beside the effects, for every generation: "negative_log_likelihood", −log p a token in nats under the network without an edit, given
    the prompt (from which the perplexity comes); and "distinct", the share of its pairs of neighbouring tokens that do not repeat
    an earlier pair: loops, too, have a low perplexity.

    Raises ValueError for an intervention that reads a source, a name twice, and no prompt or strength.
    """
    if not prompts or not methods or not strengths:
        raise ValueError("Steering needs at least one prompt, one method and one strength.")
    if NOTHING in methods or set(effects) & {"negative_log_likelihood", "distinct", "perplexity"}:
        raise ValueError(f"{NOTHING!r} and the figures of fluency have their names: call methods and effects otherwise.")
    several = {name: [each] if isinstance(each, Intervention) else list(each) for name, each in methods.items()}
    for name, each in several.items():
        if any(intervention.needs_source for intervention in each):
            raise ValueError(f"{name!r} reads a source: steering takes interventions without one, such as AdditionIntervention.")
    given = strengths if isinstance(strengths, Mapping) else dict.fromkeys(methods, strengths)
    unknown = [name for name in given if name not in methods]
    if unknown:
        raise ValueError(f"strengths names {unknown[0]!r}; the methods are {list(methods)}.")
    points = [(NOTHING, 0.0), *((name, float(s)) for name in methods for s in given.get(name, ()))]
    texts, values = [], []
    for name, strength in points:
        edits: list[dict[Any, Intervention]] = (
            [{site: scaled(each, strength)} for each in several[name]] if name != NOTHING else [{}]
        )
        runs = [
            _generated(IntervenedModel(network, edit), network, prompts, scope, max_new_tokens, batch_size, options)
            for edit in edits
        ]
        texts.append(runs[0][0])
        read = [{n: np.asarray(effect(told), dtype=float) for n, effect in effects.items()} | own for told, own in runs]
        for metric, column in (item for each in read for item in each.items()):
            if column.shape != (len(prompts),):
                raise ValueError(
                    f"The effect {metric!r} gave shape {column.shape}; expected one value for each of {len(prompts)} texts."
                )
        values.append({metric: np.mean([each[metric] for each in read], 0) for metric in read[0]})
    return Steered(tuple(points), {m: np.stack([v[m] for v in values]) for m in values[0]}, tuple(prompts), tuple(texts))


def scaled(intervention: Intervention, strength: float) -> Intervention:
    """The intervention with its change turned up: h' = h + strength · (f(h) − h)."""
    return LambdaIntervention(lambda h: h + strength * (intervention(h) - h))


def contains(words: Sequence[str]) -> Effect:
    """1 for a text that has any of the words, whole and whatever their case, else 0."""
    wanted = {word.lower() for word in words}
    if not wanted:
        raise ValueError("There is no word to look for.")

    def found(texts: Sequence[str]) -> list[float]:
        return [float(any(word.strip(".,!;:?()'\"").lower() in wanted for word in text.split())) for text in texts]

    return found


def difference_of_means(
    network: Network | nn.Module, towards: Mapping[str, Any], away: Mapping[str, Any], site: Site
) -> Float[Tensor, " width"]:
    """mean of h over `towards` − mean of h over `away`, at every token that the site names (arXiv 2308.10248, 2312.06681).

    towards, away: batches as `encode` gives them. Of a site at all positions each prompt's first token, on which networks keep
    activations far larger than elsewhere, is left out.

    Raises ValueError where no token is left.
    """
    means = []
    for batch in (towards, away):
        found = capture(network, batch, site)
        activation, n_each = found[site].float(), found.counts[site]
        steps = torch.arange(activation.shape[1], device=activation.device)
        has = steps.expand(len(activation), -1) < (activation.shape[1] if n_each is None else n_each.unsqueeze(1))
        has = has & (steps > 0) if site.position is None else has
        if not bool(has.any()):
            raise ValueError("The prompts have no token beside their first: there is no mean to take.")
        means.append(activation[has].mean(0))
    return means[0] - means[1]


def frame_direction(intervention: Intervention, along: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """The direction of a trained frame Q that points along a vector, as long as it: ‖v‖ · QQᵀv / ‖QQᵀv‖; of rank 1, ±Q.

    Raises ValueError for an intervention without a frame, and a vector of which the frame holds nothing.
    """
    if not isinstance(intervention.basis, Frame):
        raise ValueError(f"{intervention} has no trained frame; take a LowRankRotatedSpaceIntervention.")
    frame = intervention.basis.vectors().detach()
    part = frame @ (frame.T @ along.to(frame))
    if float(part.norm()) < 1e-6 * float(along.norm()):
        raise ValueError("The frame holds nothing of the vector: which way to steer is not said.")
    return part * (along.norm() / part.norm())


def random_directions(like: Float[Tensor, " width"], n: int, seed: int = 0) -> list[Tensor]:
    """Directions of the same norm, uniformly random: the control."""
    drawn = torch.randn(n, len(like), generator=torch.Generator().manual_seed(seed)).to(like)
    return list(drawn / drawn.norm(dim=1, keepdim=True) * like.norm())


def _generated(
    model: IntervenedModel,
    network: LanguageModel,
    prompts: Sequence[str],
    scope: str,
    n_new: int,
    batch_size: int,
    options: Mapping[str, Any],
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """What is generated for each prompt, its −log p a token without an edit, and its share of distinct pairs."""
    tokenizer: Any = network.tokenizer
    plain, texts, losses, distinct = IntervenedModel(network, {}), [], [], []
    for start in range(0, len(prompts), batch_size):
        batch = network.encode(list(prompts[start : start + batch_size]))
        chosen = {"do_sample": False, **options, "max_new_tokens": n_new, "pad_token_id": tokenizer.pad_token_id}
        with torch.no_grad():
            new = model.generate(batch, scope=scope, **chosen)[:, batch["input_ids"].shape[1] :].cpu()
            ended = (new == tokenizer.eos_token_id).long().cumsum(1)
            answer = new.masked_fill((ended - (new == tokenizer.eos_token_id).long()) > 0, IGNORED)
            log_p = plain.answer_logits({**batch, "answer": answer}).float().log_softmax(-1).cpu()
        real = answer != IGNORED
        each = -log_p.gather(-1, answer.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        losses.append(((each * real).sum(1) / real.sum(1)).double().numpy())
        for row, keep in zip(answer, real, strict=True):
            ids = row[keep].tolist()
            texts.append(tokenizer.decode(ids, skip_special_tokens=True))
            neighbours = list(pairwise(ids))
            distinct.append(len(set(neighbours)) / len(neighbours) if neighbours else 1.0)
    return tuple(texts), {"negative_log_likelihood": np.concatenate(losses), "distinct": np.array(distinct)}
