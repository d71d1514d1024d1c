"""One run under edits: what is hooked where, and with which source."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from iit.intervened.batch import Batch
from iit.intervened.edit import Edit, Variable, block_input
from iit.intervened.positions import Columns
from iit.intervened.recomputed import autograd_state, refuse_recomputed
from iit.intervened.resume import Suffix
from iit.network.answering import IGNORED
from iit.site import ResolvedSite, Site, Sites

Flags = Mapping[Variable, Tensor | None]
"""Variable → Tensor[batch] of bool, None where every example is active."""


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """What an edit does at one of its sites in one batch.

    columns: where the base is edited. source_site: where the source is read.
    flags, sources: which examples are active, and what is read, by variable.
    """

    edit: Edit
    resolved: ResolvedSite
    columns: Columns
    source_site: Site
    flags: Flags
    sources: dict[Variable, Tensor] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether no example is active."""
        return all(flag is not None and not bool(flag.any()) for flag in self.flags.values())

    def apply(self, base: Tensor) -> Tensor:
        """What the edit makes of the activation at these columns."""
        return self.edit.apply(base, self.sources, self.flags)


Editor = Callable[[SiteEdit, list[Tensor]], Callable[[Tensor], Tensor | None]]
"""Makes what a site's hook does with an activation; the list then holds the block's input, where
the edit skips the block."""


@dataclass(frozen=True)
class EditedRun:
    """The edits of one batch, checked and with their sources read.

    resolved: the sites of the network that runs. sites: what each edit does, by its variable.
    flags: which examples are active.
    trains: whether a backward through the run would reach weights.
    """

    batch: Batch
    resolved: Sites
    sites: Mapping[Variable, list[SiteEdit]]
    flags: Flags
    trains: bool

    def without(self, variables: Collection[Variable]) -> "EditedRun":
        """The run under the other edits."""
        sites = {key: ones for key, ones in self.sites.items() if key not in variables}
        return replace(self, sites=sites)

    @property
    def site_edits(self) -> list[SiteEdit]:
        """Those of all edits, in their order."""
        return [one for ones in self.sites.values() for one in ones]

    def span(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """(first, stop), Tensor[batch] each: from the first column that is edited or read to behind
        the last one that is read.

        All columns where an edit takes every position, or is as wide as there are keys in the run.
        """
        first, stop = read.min(1).values, read.max(1).values + 1
        for one in self.site_edits:
            index = one.columns.index
            if not isinstance(index, Tensor) or one.columns.site.component == "attention_weight":
                return torch.zeros_like(first), torch.full_like(stop, self.batch.tokens.shape[1])
            present = torch.where(index == IGNORED, first.unsqueeze(1), index)
            first = torch.minimum(first, present.min(1).values)
        return first, stop

    @contextmanager
    def applied(
        self, rest: Suffix | None = None, rows: slice = slice(None)
    ) -> Iterator[dict[SiteEdit, Tensor]]:
        """Within the context the network's next forward (or the rest of it) is edited; yields what
        each edit saw.

        rows: which rows of the forward are this run's, where several runs share it.

        Raises RuntimeError for a site's module that runs twice, never, or where a backward would
        miss the edit.
        """
        seen: dict[SiteEdit, Tensor] = {}
        outside = autograd_state() if self.trains else (False, None)

        def editor(one: SiteEdit, skipped: list[Tensor]) -> Callable[[Tensor], Tensor | None]:
            site, idle = one.columns.site, one.idle
            columns = one.columns if rest is None else rest.shifted(one.columns, rows)

            def edited(whole: Tensor) -> Tensor | None:
                if one in seen:
                    raise RuntimeError(
                        f"Site {site} was run more than once in one forward; name a module that "
                        "runs once."
                    )
                refuse_recomputed(site, outside)
                activation = whole[rows]
                seen[one] = columns.read(activation)
                if idle or one.edit.intervention.collects:
                    return None
                sources: Mapping[Variable, Tensor] = one.sources
                if skipped:
                    sources = dict.fromkeys(one.flags, columns.read(skipped[0][rows]))
                new = columns.write(activation, one.edit.apply(seen[one], sources, one.flags))
                if len(new) == len(whole):
                    return new
                return torch.cat([whole[: rows.start], new, whole[rows.stop :]])

            return edited

        with self.attached(editor):
            yield seen
            missed = [str(one.columns.site) for one in self.site_edits if one not in seen]
            if missed:
                raise RuntimeError(
                    f"The forward never ran the module of {', '.join(missed)}: nothing was "
                    "edited there."
                )

    @contextmanager
    def attached(self, editor: Editor) -> Iterator[None]:
        """Hook what `editor` makes on every site."""
        with ExitStack() as stack:
            for one in self.site_edits:
                skipped: list[Tensor] = []
                stack.enter_context(one.edit.intervention.basis.made_once())
                if one.edit.intervention.skips:
                    before = self.resolved[block_input(one.columns.site)]
                    stack.callback(before.attach(_holder(skipped)).remove)
                stack.callback(one.resolved.attach(editor(one, skipped)).remove)
            yield


def _holder(held: list[Tensor]) -> Callable[[Tensor], None]:
    def hold(activation: Tensor) -> None:
        held[:] = [activation.clone()]  # some blocks add to their input in place

    return hold
