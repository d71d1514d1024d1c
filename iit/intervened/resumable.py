"""Logits at the answers of edited runs; of a frozen network only what the edits can change is run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervened.batch import Batch, Inputs, prepare
from iit.intervened.edited_run import EditedRun
from iit.intervened.observe import Activations
from iit.intervened.positions import Columns
from iit.intervened.resume import Suffix, resumed, span, suffix, too_long
from iit.intervened.sources import Active, Sources, Variable, activity
from iit.intervened.store import ActivationStore
from iit.network.answering import head_at, logits_of
from iit.site import ResolvedSite, Site

N_COMPARED = 4
"""Examples of the first batch that run whole, too."""


class Resumable(nn.Module):
    """Edits on a network whose answers are read; runs resume where its `store` holds what earlier ones left."""

    store: ActivationStore | None
    variables: tuple[Variable, ...]
    stored: frozenset[Variable]
    first_block: int | None
    _resolved: dict[Site, ResolvedSite]

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network under study."""

    @abstractmethod
    def edited_run(self, batch: Batch, sources: Sources = None, active: Active = None) -> EditedRun:
        """The edits of one batch, ready to be applied."""

    @abstractmethod
    def _places(self, batch: Batch, flags: Mapping[Variable, Tensor | None]) -> dict[tuple[Variable, int], Columns]:
        """The columns of each site in the batch."""

    def answer_logits(
        self, base: Inputs, sources: Sources = None, active: Active = None
    ) -> Float[Tensor, "batch n_answer vocab"]:
        """Logits where the base's `answer` is read: Tensor[batch, n_answer, vocab], or [batch, 1, classes] without tokens.

        The answer is teacher-forced; a language model's head runs at these columns only. Without an answer the next token
        is read, or what stands at the masks. Raises ValueError as `iit.network.answering.with_answer` does.
        """
        batch = prepare(self.network, base)
        if batch.lengths is None and batch.decoder_lengths is None:
            if self.store is not None:
                self.store.tell("The whole network runs: its inputs are not tokens.")
            with self.edited_run(batch, sources, active).applied():
                return _class_logits(batch.through(self.network))
        batch, read = batch.with_answer(self.network)
        run = self.edited_run(batch, sources, active)
        left = run.without(self.stored)
        rest = self._suffix(batch, left, read)
        noise = torch.get_rng_state()
        logits = self._logits_at(read, batch, [run if rest is None else left], rest)
        if rest is None or self.store is None or self.store.is_trusted(rest.layer, run.flags):
            return logits
        # A user's own function may do otherwise on a part of the batch.
        own = any(edit.intervention.own_parts for edit in run.edits.values())
        n = batch.size if own else min(N_COMPARED, batch.size)
        self.store, store = None, self.store
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(noise)
            whole = self.answer_logits(*(_first(given, n) for given in (base, sources, active)))
        if store.trusts(rest.layer, run.flags, logits.detach()[:n], whole):
            self.store = store
            return logits
        return self._logits_at(read, batch, [self.edited_run(batch, sources, active)], None)

    def n_columns(self, base: Inputs, active: Active = None) -> Tensor | None:
        """LongTensor[batch], how many positions of each example a resumed run runs; None where runs do not resume.

        Batches of examples that are alike in it cost least.
        """
        batch = prepare(self.network, base)
        if self.first_block is None or batch.lengths is None:
            return None
        batch, read = batch.with_answer(self.network)
        places = self._places(batch, activity(list(self.variables), active, batch))
        left = [place for (key, _), place in places.items() if key not in self.stored]
        first, stop = span(left, read, batch.tokens.shape[1])
        return stop - first

    def _pass(self, batch: Batch, read: Tensor, active: Active) -> Any:
        """What cells that can share a pass have in common; None for a run that shares none."""
        flags = activity(list(self.variables), active, batch)
        if self.store is None or self.first_block is None or self.stored or self.store.refuses(self.network, batch) is not None:
            return None
        if not self.store.is_trusted(self.first_block, flags):
            return None
        first, stop = span(self._places(batch, flags).values(), read, batch.tokens.shape[1])
        if too_long(self.network, first, stop):
            return None
        return self.network, self.store, self.first_block, int((stop - first).max())

    def _logits_at(self, read: Tensor, batch: Batch, runs: Sequence[EditedRun], rest: Suffix | None) -> Tensor:
        """Logits at the columns `read` of the edited run: of the whole network, or of the rest of it.

        Several runs share the forward: the batch holds the rows of the first, then those of the second, and so on.
        """
        size = batch.size // len(runs)
        with ExitStack() as stack:
            for number, run in enumerate(runs):
                rows = slice(number * size, (number + 1) * size) if len(runs) > 1 else None
                stack.enter_context(run.applied(rest, rows))
            if rest is not None:
                stack.enter_context(resumed(self.network, rest))
                batch, read = rest.batch, rest.of(read)
            edited = [site.module for site in self._resolved.values() if site.site.component is None]
            at_answer = stack.enter_context(head_at(self.network, read, edited))
            output = batch.through(self.network)
        logits = logits_of(output)
        if logits is None or logits.ndim == 2:
            return _class_logits(output)
        return logits if at_answer else logits.gather(1, read.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def _suffix(self, batch: Batch, run: EditedRun, read: Tensor) -> Suffix | None:
        """What has to run, given what earlier runs have left; None where all of it has to."""
        if self.store is None:
            return None
        why = (
            "the sites are not components of a decoder's blocks"
            if self.first_block is None
            else self.store.refuses(self.network, batch)
        )
        if why is not None or self.first_block is None:
            self.store.tell(f"The whole network runs: {why}.")
            return None
        first, stop = span(run.places.values(), read, batch.tokens.shape[1])
        if too_long(self.network, first, stop):
            self.store.tell("The whole network runs: early and late edits in one batch are together longer than its positions.")
            return None
        self.store.tell("Runs resume at the first block and the first position that are edited.")
        before = self.store.prefix(self.network, batch, self.first_block, first, stop)
        return suffix(self.network, batch, self.first_block, first, stop, before)


def _first(given: Any, n: int) -> Any:
    """What was given for a batch, for its first examples."""
    if isinstance(given, Activations):
        counts = {site: None if count is None else count[:n] for site, count in given.counts.items()}
        # As long as the longest of these rows.
        longest = {site: None if (count := counts.get(site)) is None else int(count.max()) for site in given}
        return Activations({site: tensor[:n, : longest[site]] for site, tensor in given.items()}, counts)
    if isinstance(given, Mapping):
        return {key: _first(value, n) for key, value in given.items()}
    return given[:n] if isinstance(given, list) or (isinstance(given, Tensor) and given.ndim) else given


def together(cells: Sequence[Resumable], base: Inputs, sources: Sources = None, active: Active = None) -> list[Tensor]:
    """`answer_logits` of each of several cells on the same inputs.

    Cells of one network and store whose runs resume at the same block and are equally long share a pass: their batches are
    stacked. Others run one after another.
    """
    batch = prepare(cells[0].network, base)
    if len(cells) == 1 or batch.lengths is None:
        return [cell.answer_logits(base, sources, active) for cell in cells]
    batch, read = batch.with_answer(cells[0].network)
    alike: dict[Any, list[Resumable]] = {}
    for cell in cells:
        alike.setdefault(cell._pass(batch, read, active), []).append(cell)
    found: dict[Resumable, Tensor] = {}
    for shared, group in alike.items():
        if shared is None or len(group) == 1:
            found |= {cell: cell.answer_logits(base, sources, active) for cell in group}
        else:
            found |= dict(zip(group, _stacked(group, batch, read, sources, active), strict=True))
    return [found[cell] for cell in cells]


def _stacked(cells: Sequence[Resumable], batch: Batch, read: Tensor, sources: Sources, active: Active) -> Sequence[Tensor]:
    n, one = len(cells), cells[0]
    assert one.store is not None
    assert one.first_block is not None
    runs = [cell.edited_run(batch, sources, active) for cell in cells]
    spans = [span(run.places.values(), read, batch.tokens.shape[1]) for run in runs]
    first, stop = (torch.cat(ends) for ends in zip(*spans, strict=True))
    tall = Batch((), {key: value.repeat(n, 1) for key, value in batch.kwargs.items()})
    before = one.store.prefix(one.network, tall, one.first_block, first, stop)
    rest = suffix(one.network, tall, one.first_block, first, stop, before)
    return one._logits_at(read.repeat(n, 1), tall, runs, rest).chunk(n)


def _class_logits(output: Any) -> Tensor:
    logits = logits_of(output)
    if logits is None or logits.ndim != 2:
        raise ValueError(
            f"Without `input_ids` the answer is a class: the output must be Tensor[batch, classes] or have such `.logits`; "
            f"{type(output).__name__} does not."
        )
    return logits.unsqueeze(1)
