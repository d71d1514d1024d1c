"""Which pairs an alignment gets right, by the label of the causal model and by other answers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.alignment import Alignment
from iit.batch import IGNORED
from iit.data import EncodedPairs
from iit.data.encoded import differ
from iit.intervened.sources import variables_of
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
    with a pass for each alternative.

    Arguments:
        edited: False leaves every edit out, for the network's own answer on the base.
        apart: as `EncodedPairs.batches` takes it, for interventions that read another pair of their
            batch.
    """
    names = (None, *pairs.alternatives)
    right: dict[str | None, np.ndarray] = {name: np.zeros(len(pairs), dtype=bool) for name in names}
    difference, forced = (np.full(len(pairs), np.nan) for _ in range(2))
    sites = [site for edit in alignment.edits.values() for site in edit.sites]
    at_answer = any(ANSWER_ROLE.fullmatch(role) for site in sites for role in site.roles)
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns, apart=apart):
            rows, label = batch["row"], batch["base"]["answer"]
            # [batch, n_answer, vocab]; `batches` has another order than the pairs: `rows` says
            # which.
            logits = _logits(alignment, batch, label, edited).cpu()
            right[None][rows.numpy()] = correct(logits, label).numpy()
            # The log-probability of the likeliest alternative; −inf where none counts.
            best = torch.full((len(rows),), -torch.inf)
            for name, answers in pairs.alternatives.items():
                alternative = answers[rows]
                longer = alternative.shape[1] > 1 or label.shape[1] > 1
                # Answers of one token are read from the same run.
                their_logits = logits
                if longer:
                    forced_answer = _continued(alternative, label) if at_answer else alternative
                    their_logits = _logits(alignment, batch, forced_answer, edited)[
                        :, : alternative.shape[1]
                    ].cpu()
                right[name][rows.numpy()] = correct(their_logits, alternative).numpy()
                # Three dimensions hold several right answers, which have no one probability.
                if label.ndim == alternative.ndim == 2:
                    # NaN where one answer is the other or begins it: such an alternative does not
                    # count.
                    gap = logit_difference(logits, label, alternative)
                    likely = log_probability(their_logits, alternative).masked_fill(
                        gap.isnan(), -torch.inf
                    )
                    best = best.maximum(likely)
                    if name == "base":
                        difference[rows.numpy()] = gap.numpy()
            if bool((best > -torch.inf).any()):
                is_likeliest = (log_probability(logits, label) > best).float()
                forced[rows.numpy()] = is_likeliest.masked_fill(
                    best == -torch.inf, torch.nan
                ).numpy()
    return Outcomes(right, difference, forced)


def cut(alignment: Alignment, pairs: EncodedPairs, whole: Outcomes) -> np.ndarray:
    """Does the whole vector of the variable's sites give the source's own answer?

    A low figure says that the network also reads the variable elsewhere.

    Pairs of one variable count whose label is the source's answer and not the base's. Where a site
    of the residual stream (or of a module) holds every token of the prompts, nothing of the base
    passes beside it. There all pairs count whose source has another answer than the base.

    Arguments:
        whole: outcomes of vanilla patching.

    Returns:
        float[n], 1 or 0; NaN in pairs that do not count.
    """
    passes = np.full(len(pairs), np.nan)
    inputs = pairs.batch(range(len(pairs)))["base"]
    base_answers = pairs.alternatives.get("base")
    if base_answers is None:
        return passes
    for variable in pairs.variables:
        name = f"source/{variable}"
        # Without the source's answers no pair counts: nothing differs from itself.
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
"""Components beside which nothing passes at the same token."""


def _holds_all(site: Site, inputs: Mapping[str, Any]) -> bool:
    """Whether a site holds every token of each prompt; each of its roles is taken for one token."""
    # A site of a module has no component.
    if site.component not in (None, *RESIDUAL):
        return False
    n_held = len(site.position) if isinstance(site.position, tuple) else 1
    n_tokens = inputs.get("attention_mask", torch.zeros(1, 1)).sum(1)
    return site.position is None or bool((n_tokens == n_held).all())


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
    width = max(answers.shape[1], label.shape[1])
    padded_answers, padded_label = (
        pad(tokens, (0, width - tokens.shape[1]), value=IGNORED) for tokens in (answers, label)
    )
    return torch.where(padded_answers == IGNORED, padded_label, padded_answers)


def _logits(alignment: Alignment, batch: dict[str, Any], answer: Tensor, edited: bool) -> Tensor:
    base = batch["base"] | {"answer": answer}
    if not edited:
        return alignment.answer_logits(base, active=dict.fromkeys(alignment.variables, False))
    return alignment.answer_logits(base, *inputs_of(alignment, batch))


def inputs_of(alignment: Alignment, batch: Mapping[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """The sources of a batch, and which variables are active.

    Variables of the alignment that the pairs do not know have no source: they are inactive.
    """
    idle = {variable: False for variable in alignment.variables if variable not in batch["sources"]}
    return batch["sources"] if alignment.needs_source else None, batch["active"] | idle
