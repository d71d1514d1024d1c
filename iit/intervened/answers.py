"""Logits at the answers of edited runs: from the whole network, or from a resumed run.

A resumed run takes what lies before its first block and position from an `ActivationStore`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from iit.batch import Batch
from iit.intervened.edited_run import EditedRun
from iit.intervened.observe import Activations
from iit.intervened.resume import Suffix, resumed, suffix_from
from iit.intervened.store import ActivationStore
from iit.network.answering import head_at, logits_at
from iit.network.components import transformer_in


def logits_at_answers(
    runs: Sequence[EditedRun], answer_columns: Tensor | None, suffix: Suffix | None = None
) -> Tensor:
    """The logits at some columns, or the classes of a network without tokens.

    Arguments:
        runs: the runs that share the forward. Its rows are those of the first run, then those of
            the second, and so on.
        answer_columns: Tensor[batch, n_answer]; None for a network without tokens.
        suffix: what is left to run, where the runs are resumed; by default the whole network runs.

    Returns Tensor[batch, n_answer, vocab], or Tensor[batch, 1, classes] without tokens.

    Raises ValueError where the output has no classes.
    """
    batch, network = runs[0].batch, runs[0].resolved.network
    edited = []
    with ExitStack() as stack:
        for number, run in enumerate(runs):
            # One run has all rows of the forward, however a module counts them.
            rows = slice(None)
            if len(runs) > 1:
                rows = slice(number * batch.size, (number + 1) * batch.size)
            stack.enter_context(run.applied(suffix, rows))
            for site_edit in run.site_edits:
                # Components never lie in the head or around it; an arbitrary module may.
                if site_edit.resolved.site.component is None:
                    edited.append(site_edit.resolved.module)
        if suffix is not None and answer_columns is not None:
            stack.enter_context(resumed(network, suffix))
            # The suffix counts its columns from its own start.
            batch, answer_columns = suffix.batch, suffix.renumbered(answer_columns)
        gathered = stack.enter_context(head_at(network, answer_columns, edited))
        output = batch.through(network)
    return logits_at(output, answer_columns, gathered).to(batch.device)


def resumed_logits(
    runs: Sequence[EditedRun],
    answer_columns: Tensor,
    layer: int,
    store: ActivationStore,
) -> Sequence[Tensor]:
    """`logits_at_answers` of each run, all in one pass from block `layer` on.

    Arguments:
        runs: runs of one batch and one network.
        answer_columns: Tensor[batch, n_answer], the same columns for every run.
        layer: the first block that runs. No edit of these runs is before it.
        store: has what comes before, or runs it.

    Returns a Tensor[batch, n_answer, vocab] for each run.
    """
    n, batch, network = len(runs), runs[0].batch, runs[0].resolved.network
    # Each run resumes at its own columns: its edits may be at other positions.
    spans = [run.span(answer_columns) for run in runs]
    first, stop = map(torch.cat, zip(*spans, strict=True))
    # [runs · batch, seq]: the base once for each run.
    repeated = {key: value.repeat(n, 1) for key, value in batch.kwargs.items()}
    stacked = Batch((), repeated)
    before = store.prefix(network, stacked, layer, first, stop)
    suffix = suffix_from(network, stacked, layer, first, stop, before)
    return logits_at_answers(runs, answer_columns.repeat(n, 1), suffix).chunk(n)


def reason_not_to_resume(
    run: EditedRun,
    answer_columns: Tensor | None,
    layer: int | None,
    store: ActivationStore,
) -> str | None:
    """Why a run cannot resume at block `layer`; None where it can."""
    if answer_columns is None:
        return "its answer is a class, and no token"
    if layer is None:
        return "the sites are not components of a decoder's blocks"
    network = run.resolved.network
    if (refusal := store.refuses(network, run.batch)) is not None:
        return refusal
    # In a resumed batch the cached tokens (as many as the latest start) stand beside the longest
    # suffix. Together they may be longer than any prompt is.
    first, stop = run.span(answer_columns)
    limit = getattr(transformer_in(network).config, "max_position_embeddings", None)
    if limit is not None and int(first.max()) + int((stop - first).max()) > limit:
        return "early and late edits in one batch are together longer than its positions"
    return None


def first_examples(argument: Any, n: int) -> Any:
    """The first n examples of what was given for a batch: inputs, sources or flags."""
    if isinstance(argument, Activations):
        first = Activations({})
        for site, tensor in argument.items():
            count, longest = argument.counts.get(site), None
            if count is not None:
                count = count[:n]
                # Positions that only later examples have are cut off.
                longest = int(count.max())
            first[site], first.counts[site] = tensor[:n, :longest], count
        return first
    if isinstance(argument, Mapping):
        return {key: first_examples(value, n) for key, value in argument.items()}
    if isinstance(argument, list) or (isinstance(argument, Tensor) and argument.ndim):
        return argument[:n]
    return argument
