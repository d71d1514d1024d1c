"""Which pairs an alignment gets right, by the label of the causal model and by other answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.alignment import Alignment
from iit.batch import IGNORED
from iit.data import EncodedPairs
from iit.data.encoded import differ
from iit.data.table import dataset
from iit.intervened import Edit
from iit.intervened.edit import sites_of, variables_of
from iit.intervened.score import ARGMAX, Score
from iit.network.answering import ANSWER_ROLE
from iit.result import correct, log_probability, logit_difference
from iit.site import Site


class Outcomes(NamedTuple):
    """What an alignment does on pairs, in the order of the pairs.

    right: {name: bool[n]}, whether an answer is the argmax at every answer token. None is the
        causal model's label; a name is an answer of `EncodedPairs.alternatives`.
    difference: float[n], logit of the label − logit of the base's own answer, where their tokens
        first differ. NaN where they do not differ, where the base's answer is not known, and where
        several answers are right.
    forced: float[n], 1 where the label is likelier than all of the pair's alternatives, else 0.
        Compared are the log-probabilities of all tokens of an answer, each answer teacher-forced,
        whatever its length. An alternative does not count that is the label, begins it or is begun
        by it. NaN where no alternative counts, and where several answers are right.
    scored: [n], whether the label is right by the score (see `Score`); NaN where that does not say.
    texts: str[n], what is written; "" where the score reads tokens.
    best: {pair: (the highest three logits where the first token of the answer is read, and their
        tokens)}; of networks with fewer classes, as many.
    """

    right: dict[str | None, np.ndarray]
    difference: np.ndarray
    forced: np.ndarray
    scored: np.ndarray
    texts: Any = None
    best: Any = None

    @classmethod
    def of(cls, right: np.ndarray) -> "Outcomes":
        """Outcomes of which nothing is known but whether the label is right, [n]."""
        unknown = np.full(len(right), np.nan)
        return cls({None: right}, unknown, unknown, right)


def outcomes(
    alignment: Alignment,
    pairs: EncodedPairs,
    *,
    batch_size: int = 64,
    edited: bool = True,
    apart: bool = False,
    score: Score = ARGMAX,
) -> Outcomes:
    """Score every pair by the causal model's label and by its alternatives.

    Answers of one token are scored in one pass over the network. Longer ones are teacher-forced,
    with a pass for each alternative.

    Arguments:
        edited: False leaves every edit out, for the network's own answer on the base.
        apart: as `EncodedPairs.batches` takes it, for interventions that read another pair of their
            batch.
        score: by default that of tokens.

    Raises:
        ValueError: for a score that says nothing of any pair.
    """
    n = len(pairs)
    names = (None, *pairs.alternatives)
    right = {name: np.zeros(n, dtype=bool) for name in names}
    difference, forced = np.full((2, n), np.nan)
    texts, best = np.full(n, "", dtype=object), {}
    several = any("#" in name for name in pairs.alternatives)
    at_answer = last_answer_token(alignment.edits.values()) >= 0
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns, apart=apart):
            # `batches` has another order than the pairs: `rows` says which.
            rows, label = batch["row"].numpy(), batch["base"]["answer"]
            base = batch["base"]
            # Without edits there is no source, and no variable is active.
            edits = None, dict.fromkeys(alignment.variables, False)
            if edited:
                edits = inputs_of(alignment, batch)
            if score.kind == "generated":
                _, texts[rows] = score.written(alignment, base, *edits)
            # [batch, n_answer, vocab]
            logits = alignment.answer_logits(base, *edits).cpu()
            right[None][rows] = correct(logits, label)
            top = logits[:, 0].topk(min(3, logits.shape[-1]))
            best |= zip(rows, zip(*map(Tensor.tolist, top), strict=True), strict=True)
            # The log-probability of the likeliest alternative; −inf where none counts.
            highest = torch.full((len(rows),), -torch.inf)
            for name, answers in pairs.alternatives.items():
                alternative = answers[rows]
                their_logits = logits
                # Answers of one token are read from the same run.
                if alternative.shape[1] > 1 or label.shape[1] > 1:
                    behind = _continued(alternative, label) if at_answer else alternative
                    their_logits = alignment.answer_logits(base | {"answer": behind}, *edits)
                    their_logits = their_logits[:, : alternative.shape[1]].cpu()
                right[name][rows] = correct(their_logits, alternative)
                # Several right answers, here or in three dimensions, have no one probability.
                if several or label.ndim == 3 or alternative.ndim == 3:
                    continue
                # NaN where one answer is the other or begins it: then it is no alternative.
                gap = logit_difference(logits, label, alternative)
                likely = log_probability(their_logits, alternative)
                highest = highest.maximum(likely.masked_fill(gap.isnan(), -torch.inf))
                if name == "base":
                    difference[rows] = gap
            alone = highest == -torch.inf
            if not bool(alone.all()):
                is_likeliest = (log_probability(logits, label) > highest).float()
                forced[rows] = is_likeliest.masked_fill(alone, torch.nan)
    for name in pairs.alternatives:
        # NAME#1 and so on are right where NAME is; without a name it is the label.
        kind, numbered, _ = name.partition("#")
        if numbered:
            right[kind or None] |= right.pop(name)
    scored: Any = {"argmax": right[None], "forced": forced}.get(score.kind)
    if scored is None:
        scored = np.array(list(map(score.is_right, texts, pairs.table.to_list())))
    if np.isnan(scored).all():
        raise ValueError(
            "score=forced compares one right answer with others that are listed; here there are no "
            "others, or several are right. A task lists them for its prompts in `alternatives`. "
            "Take data.right_only=false, score=argmax or score=generated."
        )
    return Outcomes(right, difference, forced, scored, texts, best)


def last_answer_token(edits: Iterable[Edit]) -> int:
    """The largest k among the edits' sites at `answer[k]`; −1 where there is none."""
    last = -1
    for site in sites_of(edits):
        for role in site.roles:
            if match := ANSWER_ROLE.fullmatch(role):
                last = max(last, int(match[1]))
    return last


def cut(alignment: Alignment, pairs: EncodedPairs, whole: Outcomes) -> np.ndarray:
    """Does swapping the whole vectors of the variable's sites give the source's own answer?

    The name is that of a cut in a graph: where it is 1, every way from the variable to the answer
    leads through the sites. A low figure says that the network also reads the variable elsewhere.

    Pairs of one variable count whose label is the source's answer and not the base's. Where a site
    of the residual stream (or of a module) holds every token of the prompts, nothing of the base
    passes beside it. There all pairs count whose source has another answer than the base.

    Arguments:
        whole: outcomes of vanilla patching.

    Returns:
        float[n], 1 or 0; NaN in pairs that do not count.
    """
    passes = np.full(len(pairs), np.nan)
    base = pairs.batch(range(len(pairs)))["base"]
    base_answers = pairs.alternatives.get("base")
    for variable, edit in edits_of(alignment).items():
        answers = pairs.alternatives.get(f"source/{variable}")
        # Without both answers nothing says whether they differ.
        if answers is None or base_answers is None:
            continue
        covered = any(_holds_all(site, base) for site in edit.sites)
        counted = np.array(differ(answers, base_answers))
        counted &= ~np.array(differ(answers, base["answer"])) | covered
        counted &= [names == (variable,) for names in pairs.interchanged]
        passes[counted] = whole.right[f"source/{variable}"][counted]
    return passes


def edits_of(alignment: Alignment) -> dict[str, Edit]:
    """{variable: the edit that serves it}."""
    by_variable = {}
    for key, edit in alignment.edits.items():
        for variable in variables_of(key, edit):
            by_variable[str(variable)] = edit
    return by_variable


RESIDUAL = ("embedding_output", "block_input", "block_output")
"""Components beside which nothing passes at the same token."""


def _holds_all(site: Site, inputs: Mapping[str, Any]) -> bool:
    """Whether a site holds every token of each prompt; each of its roles is taken for one token."""
    # A site of a module has no component.
    if site.component not in (None, *RESIDUAL):
        return False
    if site.position is None:
        return True
    n_held = len(site.position) if isinstance(site.position, tuple) else 1
    mask = inputs.get("attention_mask")
    return mask is not None and bool((mask.sum(1) == n_held).all())


@contextmanager
def evaluating(alignment: Alignment) -> Iterator[None]:
    """Without gradients, and with learned gates hard. The alignment's mode is restored."""
    was_training = alignment.training
    alignment.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        alignment.train(was_training)


def _continued(answers: Tensor, label: Tensor) -> Tensor:
    """The answers, LongTensor[batch, n]; the label's tokens follow an answer that is shorter.

    A site at `answer[k]` has to be there in every pair. Tokens behind an answer do not change how
    likely its own tokens are.
    """
    n_more = label.shape[1] - answers.shape[1]
    if n_more > 0:
        answers = pad(answers, (0, n_more), value=IGNORED)
    else:
        label = pad(label, (0, -n_more), value=IGNORED)
    return torch.where(answers == IGNORED, label, answers)


def inputs_of(alignment: Alignment, batch: Mapping[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """The sources of a batch, and which variables are active.

    Variables of the alignment that the pairs do not know have no source: they are inactive.
    """
    sources = batch["sources"]
    idle = dict.fromkeys(set(alignment.variables) - set(sources), False)
    read = {}
    for variable, edit in edits_of(alignment).items():
        if edit.intervention.needs_source and variable in sources:
            read[variable] = sources[variable]
    return read or None, batch["active"] | idle


def asking(network: Any, score: Score, possible: Sequence[str] = ()) -> Any:
    """The same network, which answers prompts by the score, as `AnswersPrompts`.

    Arguments:
        network: a network, or an alignment that stands for its own.
        possible: the answers of which a prompt lists those that it holds (`Task.alternatives`).
    """
    if score.kind == "argmax":
        return network
    asked, holds = copy(network), Score(compare="contains").is_right

    def answers_right(prompts: Any, answers: Any) -> np.ndarray:
        listed = []
        for prompt, answer in zip(prompts, answers, strict=True):
            # At the start of a line, as in a conversation, no answer has a space before it.
            spaced = str(answer).startswith(" ")
            others = possible if spaced else list(map(str.lstrip, possible))
            held = [other for other in others if holds(str(prompt), {"label": other})]
            listed.append(dict(zip(possible, held or others, strict=False)))
        # The answers that a prompt lists stand where a pair has those of rivals.
        columns = {"base": prompts, "label": answers, "rival_labels": listed}
        columns["changing"] = [False] * len(prompts)
        studied = getattr(network, "studied", network)
        pairs = EncodedPairs(dataset(columns), (), studied)
        return outcomes(Alignment(studied, {}), pairs, score=score).scored == 1

    fingerprint = f"{network.fingerprint()} {score.metric}"
    vars(asked).update(answers_right=answers_right, fingerprint=lambda: fingerprint)
    return asked
