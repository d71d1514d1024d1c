"""Which pairs an alignment gets right, by the causal model's label and by its rivals'."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.data.encoded import differ
from iit.intervened.sources import variables_of
from iit.network.answering import ANSWER_ROLE, IGNORED
from iit.result import correct, log_probability, logit_difference
from iit.site import Site


class Outcomes(NamedTuple):
    """What an alignment does on pairs, in their order.

    right: bool[n], whether the label is the argmax at every answer token; None: the causal model's
        label, a name: that of `EncodedPairs.alternatives`.
    difference: float[n], logit of the label − logit of the base's own answer, where their tokens
        first differ; NaN where they do not, where the base's answer is not known, and where several
        answers are right.
    forced: float[n], 1 where the label is the likeliest among the pair's alternatives, else 0.
        Compared are log-probabilities of all tokens, each answer teacher-forced, whatever its
        length. An alternative does not count that is the label, begins it or is begun by it. NaN
        where none counts, and where several answers are right.
    """

    right: dict[str | None, np.ndarray]
    difference: np.ndarray
    forced: np.ndarray


def outcomes(
    alignment: Alignment,
    pairs: EncodedPairs,
    *,
    batch_size: int = 64,
    edited: bool = True,
    apart: bool = False,
) -> Outcomes:
    """Score every pair by the causal model's label and by its alternatives.

    Answers of one token are scored in one pass over the network. Longer ones are teacher-forced,
    which takes a pass for each alternative.

    edited: False leaves every edit out, for the network's own answer on the base.
    apart: as `EncodedPairs.batches` takes it, for what one pair has from another of its batch.
    """
    names = (None, *pairs.alternatives)
    right: dict[str | None, np.ndarray] = {name: np.zeros(len(pairs), dtype=bool) for name in names}
    difference, forced = (np.full(len(pairs), np.nan) for _ in range(2))
    sites = [site for edit in alignment.edits.values() for site in edit.sites]
    at_answer = any(ANSWER_ROLE.fullmatch(role) for site in sites for role in site.roles)
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns, apart=apart):
            rows, label = batch["row"], batch["base"]["answer"]
            logits = _logits(alignment, batch, label, edited).cpu()
            right[None][rows.numpy()] = correct(logits, label).numpy()
            best = torch.full((len(rows),), -torch.inf)
            for name, answers in pairs.alternatives.items():
                theirs = answers[rows]
                longer = theirs.shape[1] > 1 or label.shape[1] > 1
                there = logits
                if longer:
                    forced_answer = _continued(theirs, label) if at_answer else theirs
                    there = _logits(alignment, batch, forced_answer, edited)[
                        :, : theirs.shape[1]
                    ].cpu()
                right[name][rows.numpy()] = correct(there, theirs).numpy()
                if label.ndim == theirs.ndim == 2:
                    gap = logit_difference(logits, label, theirs)
                    likely = log_probability(there, theirs).masked_fill(gap.isnan(), -torch.inf)
                    best = best.maximum(likely)
                    if name == "base":
                        difference[rows.numpy()] = gap.numpy()
            if bool((best > -torch.inf).any()):
                won = (log_probability(logits, label) > best).float()
                forced[rows.numpy()] = won.masked_fill(best == -torch.inf, torch.nan).numpy()
    return Outcomes(right, difference, forced)


def cut(alignment: Alignment, pairs: EncodedPairs, whole: Outcomes) -> np.ndarray:
    """float[n]: does the whole vector of the variable's sites give the source's own answer?

    NaN in pairs that do not count. Pairs of one variable count whose label is the source's answer
    and not the base's. Where a site of the residual stream (or a module) holds every token of the
    prompts, all count whose source has another answer than the base: nothing of the base passes
    beside it. A low figure says that the network also reads the variable elsewhere.

    whole: outcomes of vanilla patching.
    """
    passes = np.full(len(pairs), np.nan)
    inputs = pairs.batch(range(len(pairs)))["base"]
    base_answers = pairs.alternatives.get("base")
    if base_answers is None:
        return passes
    for variable in pairs.variables:
        name = f"source/{variable}"
        answers = pairs.alternatives.get(name, base_answers)
        edits = [
            edit for key, edit in alignment.edits.items() if variable in variables_of(key, edit)
        ]
        covered = any(_holds_all(site, inputs) for edit in edits for site in edit.sites)
        counted = np.array(differ(answers, base_answers))
        counted &= ~np.array(differ(answers, inputs["answer"])) | covered
        counted &= [names == (variable,) for names in pairs.interchanged]
        passes[counted] = whole.right.get(name, passes)[counted]
    return passes


RESIDUAL = ("embedding_output", "block_input", "block_output")
"""Components beside which nothing passes."""


def _holds_all(site: Site, inputs: Mapping[str, Any]) -> bool:
    """Whether a site holds all that passes of each prompt: of several roles each is one token."""
    if site.component not in (None, *RESIDUAL):
        return False
    n_held = len(site.position) if isinstance(site.position, tuple) else 1
    n_tokens = inputs.get("attention_mask", torch.zeros(1, 1)).sum(1)
    return site.position is None or bool((n_tokens == n_held).all())


@contextmanager
def evaluating(alignment: Alignment) -> Iterator[None]:
    """Without gradients, and with learned gates hard."""
    was_training = alignment.training
    alignment.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        alignment.train(was_training)


def _continued(answers: Tensor, label: Tensor) -> Tensor:
    """The answers, LongTensor[batch, n], with the label's tokens behind those that are shorter.

    A site at `answer[k]` has to be there in every pair. What stands behind an answer does not
    change how likely its own tokens are.
    """
    width = max(answers.shape[1], label.shape[1])
    longer, behind = (
        pad(one, (0, width - one.shape[1]), value=IGNORED) for one in (answers, label)
    )
    return torch.where(longer == IGNORED, behind, longer)


def _logits(alignment: Alignment, batch: dict[str, Any], answer: Tensor, edited: bool) -> Tensor:
    base = batch["base"] | {"answer": answer}
    if not edited:
        return alignment.answer_logits(base, active=dict.fromkeys(alignment.variables, False))
    idle = {variable: False for variable in alignment.variables if variable not in batch["sources"]}
    sources = batch["sources"] if alignment.needs_source else None
    return alignment.answer_logits(base, sources, batch["active"] | idle)
