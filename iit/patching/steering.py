"""Steering: turn up a direction or a trained edit during generation.

Its effect is measured beside what it costs in fluency.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from iit.batch import IGNORED
from iit.intervened import IntervenedModel, Score, capture
from iit.intervention import Frame, Intervention, LambdaIntervention
from iit.intervention.operation import Vector
from iit.network import LanguageModel
from iit.patching.contrast import AnyNetwork, EncodedBatch
from iit.patching.effects import TableLines
from iit.patching.metric import Figures
from iit.progress import progress
from iit.result import Cell, Interval, Row, clustered_interval
from iit.site import Site

Effect = Callable[[Sequence[str]], Sequence[float]]
"""Generated texts (without their prompts) → a figure for each."""
NO_INTERVENTION = "no_intervention"
LOSS = "negative_log_likelihood"


@final
@dataclass(frozen=True, eq=False)
class Steered:
    """Generations under each method × strength, prompt by prompt.

    points: (method, strength) in order; the first is (`NO_INTERVENTION`, 0).
    values: metric → float[point, prompt].
    prompts: the prompts.
    texts: for each point, what was generated for each prompt (of several edits under one name, the
        first one's).
    """

    points: tuple[tuple[str, float], ...]
    values: Figures
    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    def interval(self, point: int, metric: str) -> Interval:
        """The mean over prompts with its 95% interval.

        For "perplexity" it is the exponential of that of "negative_log_likelihood".
        """
        if metric == "perplexity":
            *logarithms, n = self.interval(point, LOSS)
            value, low, high = (float(np.exp(logarithm)) for logarithm in logarithms)
            return Interval(value, low, high, n)
        values = self.values[metric][point]
        # Zeros and ones are shares, whose interval stays between 0 and 1.
        bounded = bool(np.isin(values, (0.0, 1.0)).all())
        return clustered_interval(values, np.arange(len(values)), bounded=bounded)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured, the effects first."""
        return (*(name for name in self.values if name != LOSS), "perplexity")

    def table(self) -> TableLines:
        """A line for each point and metric: method, strength, metric, value, low, high, n."""
        lines = []
        for (point, (method, strength)), metric in product(enumerate(self.points), self.metrics):
            line = {"method": method, "strength": strength, "metric": metric}
            lines.append(line | self.interval(point, metric)._asdict())
        return lines

    def rows(self, site: Site, **facts: Any) -> list[Row]:
        """The figures as rows of `metrics.json`.

        The strength is the draw.
        """
        common: dict[str, Any] = dict.fromkeys(Cell._fields) | {"subset": "all"} | facts

        rows = []
        for line in self.table():
            line["draw"] = line.pop("strength")
            if line["method"] == NO_INTERVENTION:
                # A run without an edit is of no site, and has no strength.
                line |= {"method": None, "control": NO_INTERVENTION, "draw": None}
            else:
                line |= site.coordinates() | {"control": None}
            rows.append(Row(**common | line))
        return rows

    def generations(self) -> TableLines:
        """A line for each point and prompt: method, strength, prompt, text, and its figures."""
        lines = []
        for point, (method, strength) in enumerate(self.points):
            for row, prompt in enumerate(self.prompts):
                line = {"method": method, "strength": strength, "prompt": prompt}
                line["text"] = self.texts[point][row]
                for name, values in self.values.items():
                    line[name] = float(values[point, row])
                lines.append(line)
        return lines

    def chosen(self, effect: str, max_ratio: float | int) -> dict[str, float]:
        """{method: its strength with the largest effect, among those that leave the text fluent}.

        A text is fluent where its perplexity is at most `max_ratio` times that without an edit.
        Among equal effects the smallest strength counts. Methods without a fluent strength are left
        out.
        """
        bound = max_ratio * self.interval(0, "perplexity").value
        best: dict[str, tuple[float, float]] = {}
        for point, (method, strength) in enumerate(self.points):
            if method == NO_INTERVENTION or self.interval(point, "perplexity").value > bound:
                continue
            # The least of these has the largest effect, and then the smallest strength.
            rank = (-self.interval(point, effect).value, strength)
            best[method] = min(rank, best.get(method, rank))
        return {method: strength for method, (_, strength) in best.items()}


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
    written: Callable[[str], Any] = str,
    **options: Any,
) -> Steered:
    """Generate under each method at each strength.

    h' = h + strength · (f(h) − h)

    Beside the effects, two figures are measured of every generation. "negative_log_likelihood" is
    −log p per token in nats, given the prompt, under the network without an edit; the perplexity
    comes from it. "distinct" is the share of its pairs of neighbouring tokens that do not repeat an
    earlier pair. Loops have a low perplexity, too, but few distinct pairs.

    Arguments:
        methods: {name: an intervention without a source}, such as `AdditionIntervention(direction)`
            or a trained `LoReFTIntervention`. A name may have several (random directions, say);
            their figures are averaged, prompt by prompt.
        strengths: of all methods, or of each. 0 changes nothing; 1 is the intervention itself.
        effects: name → what is read from the generated texts.
        written: prompt → what the network reads of it, such as a conversation.
        scope, options: as `IntervenedModel.generate` takes them; greedy by default.

    Raises:
        ValueError: for an intervention that reads a source, a name twice, and no prompt, method or
            strength.

    References:
        arXiv 2308.10248, 2312.06681, 2404.03592.
    """
    if not prompts or not methods or not strengths:
        raise ValueError("Steering needs at least one prompt, one method and one strength.")
    if NO_INTERVENTION in methods or {LOSS, "distinct", "perplexity"} & set(effects):
        raise ValueError(
            f"{NO_INTERVENTION!r} and the figures of fluency have their names: call methods and "
            "effects otherwise."
        )

    if not isinstance(strengths, Mapping):
        strengths = dict.fromkeys(methods, strengths)
    for name in strengths:
        if name not in methods:
            raise ValueError(f"strengths names {name!r}; the methods are {list(methods)}.")

    # {point: its edits, one for each intervention under its name}. The first point is the network
    # without an edit, to compare with.
    edits: dict[tuple[str, float], list[dict[Any, Intervention]]] = {(NO_INTERVENTION, 0.0): [{}]}
    for name, method in methods.items():
        interventions = [method] if isinstance(method, Intervention) else method
        if any(item.needs_source for item in interventions):
            raise ValueError(
                f"{name!r} reads a source: steering takes interventions without one, such as "
                "AdditionIntervention."
            )
        for strength in map(float, strengths.get(name, ())):
            edits[name, strength] = [{site: scaled(item, strength)} for item in interventions]

    options |= {"scope": scope, "max_new_tokens": max_new_tokens}
    inputs = list(map(written, prompts))
    texts = []
    means: dict[str, list[np.ndarray]] = {}
    for edits_of_point in progress(edits.values(), "Steering"):
        runs = []
        for edit in edits_of_point:
            model = IntervenedModel(network, edit)
            runs.append(_generated(model, network, inputs, effects, batch_size, options))
        texts.append(runs[0][0])
        for name in runs[0][1]:
            # The interventions of one name are averaged, prompt by prompt.
            mean = np.mean([figures[name] for _, figures in runs], 0)
            means.setdefault(name, []).append(mean)

    values = {name: np.stack(by_point) for name, by_point in means.items()}
    return Steered(tuple(edits), values, tuple(prompts), tuple(texts))


def scaled(intervention: Intervention, strength: float) -> Intervention:
    """The intervention with its change turned up: h' = h + strength · (f(h) − h)."""
    return LambdaIntervention(lambda h: h + strength * (intervention(h) - h))


def difference_of_means(
    network: AnyNetwork, towards: EncodedBatch, away: EncodedBatch, site: Site
) -> Vector:
    """mean of h over `towards` − mean of h over `away`, at every token that the site names.

    Arguments:
        towards, away: batches as `encode` gives them. Where the site has all positions, the first
            token of each prompt is left out: networks keep far larger activations there.

    Raises:
        ValueError: where no token is left.

    References:
        arXiv 2308.10248, 2312.06681.
    """
    means = []
    for batch in (towards, away):
        captured = capture(network, batch, site)
        activation = captured[site].float()
        n = captured.counts[site]
        # [prompt, position]: which tokens count.
        real = torch.ones_like(activation[..., 0], dtype=torch.bool)
        if site.position is None:
            real[:, 0] = False
        if n is not None:
            real &= torch.arange(real.shape[1], device=real.device) < n.unsqueeze(1)
        if not real.any():
            raise ValueError(
                "The prompts have no token beside their first: there is no mean to take."
            )
        means.append(activation[real].mean(0))
    return means[0] - means[1]


def frame_direction(intervention: Intervention, along: Vector) -> Vector:
    """The direction of a trained frame Q that points along a vector v, with the length of v.

    ‖v‖ · QQᵀv / ‖QQᵀv‖; of rank 1, ±Q

    Raises:
        ValueError: for an intervention without a frame, and a vector of which the frame holds
            nothing.
    """
    if not isinstance(intervention.basis, Frame):
        raise ValueError(
            f"{intervention} has no trained frame; take a LowRankRotatedSpaceIntervention."
        )
    frame = intervention.basis.vectors().detach()
    part = frame @ (frame.T @ along.to(frame))
    if float(part.norm()) < 1e-6 * float(along.norm()):
        raise ValueError("The frame holds nothing of the vector: which way to steer is not said.")
    return part * (along.norm() / part.norm())


def random_directions(like: Vector, n: int, seed: int = 0) -> list[Tensor]:
    """Directions of the same norm, uniformly random, as a control."""
    # Gaussian vectors point in all directions alike; only their length has to be set.
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, len(like), generator=generator).to(like)
    return list(drawn / drawn.norm(dim=1, keepdim=True) * like.norm())


def _generated(
    model: IntervenedModel,
    network: LanguageModel,
    prompts: list[Any],
    effects: Mapping[str, Effect],
    batch_size: int,
    options: Mapping[str, Any],
) -> tuple[tuple[str, ...], Figures]:
    """The text that an edited network generates for each prompt, and the figures of each text.

    They are the effects, −log p per token without an edit, and the share of distinct pairs of
    neighbouring tokens.
    """
    plain = IntervenedModel(network, {})
    texts, losses, distinct = [], [], []
    for start in range(0, len(prompts), batch_size):
        batch = network.encode(prompts[start : start + batch_size])
        # [batch, new token], without the prompt's columns.
        answer, batch_texts = Score(compare="contains").written(model, batch, **options)
        texts += batch_texts
        with torch.no_grad():
            # The text is teacher-forced in the network without an edit.
            logits = plain.answer_logits({**batch, "answer": answer})
            log_p = logits.float().log_softmax(-1).cpu()

        real = answer != IGNORED
        answer_ids = answer.clamp(min=0).unsqueeze(-1)
        loss = -log_p.gather(-1, answer_ids).squeeze(-1)
        mean_loss = (loss * real).sum(1) / real.sum(1)
        losses.append(mean_loss.double().numpy())
        for row in range(len(answer)):
            neighbours = list(pairwise(answer[row, real[row]].tolist()))
            # A text of one token has no pairs, and repeats nothing.
            distinct.append(len(set(neighbours)) / len(neighbours) if neighbours else 1.0)

    figures: dict[str, np.ndarray] = {}
    for name, effect in effects.items():
        figures[name] = np.asarray(effect(texts), dtype=float)
        if figures[name].shape != (len(prompts),):
            raise ValueError(
                f"The effect {name!r} gave shape {figures[name].shape}; expected one value for "
                f"each of {len(prompts)} texts."
            )
    figures |= {LOSS: np.concatenate(losses), "distinct": np.array(distinct)}
    return tuple(texts), figures
