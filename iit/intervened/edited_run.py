"""One run under edits: what is hooked where, and with which source."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from iit.intervened.edit import Edit
from iit.intervened.positions import Columns
from iit.intervened.recomputed import autograd_state, refuse_recomputed
from iit.intervened.resume import Suffix
from iit.intervened.sources import Variable, variables_of
from iit.site import ResolvedSite, Site

Place = tuple[Variable, int]
"""One site of an edit: the edit's variable, and the number of the site."""
Source = Tensor | dict[str, Tensor] | list[Tensor] | None
"""What an edit's hook reads in place of the base: a list is filled by another hook of the same forward."""
Editor = Callable[[Variable, int, Source, Any, bool], Callable[[Tensor], Tensor | None]]
"""(variable, number of the site, source, active, whether no example is active) → what its hook does with an activation."""


@dataclass(frozen=True)
class EditedRun:
    """The edits of one batch, checked and with their sources read.

    flags: variable → Tensor[batch] of bool, None = every example. places: the columns of each site in the batch.
    values: the source activations of each variable and site. trains: whether a backward through the run would reach weights.
    """

    edits: Mapping[Variable, Edit]
    resolved: Mapping[Site, ResolvedSite]
    flags: Mapping[Variable, Tensor | None]
    places: Mapping[Place, Columns]
    values: Mapping[Place, Tensor]
    trains: bool

    def without(self, variables: Collection[Variable]) -> "EditedRun":
        """The run under the other edits."""
        edits = {key: edit for key, edit in self.edits.items() if key not in variables}
        return replace(self, edits=edits, places={place: found for place, found in self.places.items() if place[0] in edits})

    @contextmanager
    def applied(self, rest: Suffix | None = None, rows: slice | None = None) -> Iterator[dict[Place, Tensor]]:
        """Within the context the network's next forward (or the rest of it) is edited; yields what each edit saw.

        rows: which rows of the forward are this run's, where several runs share it.

        Raises RuntimeError for a site's module that runs twice, never, or where a backward would miss the edit.
        """
        rows = rows or slice(None)
        places = self.places if rest is None else {key: rest.shifted(place, rows) for key, place in self.places.items()}
        seen: dict[Place, Tensor] = {}
        outside = autograd_state() if self.trains else (False, None)

        def editor(key: Variable, number: int, source: Source, active: Any, idle: bool) -> Callable[[Tensor], Tensor | None]:
            edit, place = self.edits[key], places[key, number]

            def edited(whole: Tensor) -> Tensor | None:
                site = edit.sites[number]
                if (key, number) in seen:
                    raise RuntimeError(f"Site {site} was run more than once in one forward; name a module that runs once.")
                refuse_recomputed(site, outside)
                activation = whole[rows]
                seen[key, number] = piece = place.read(activation)
                if edit.intervention.collects or idle:
                    return None
                given = place.read(source[0][rows]) if isinstance(source, list) else source
                new = place.write(activation, edit.apply(piece, given, active))
                start, stop, _ = rows.indices(len(whole))
                return new if stop - start == len(whole) else torch.cat([whole[:start], new, whole[stop:]])

            return edited

        with self.attached(editor):
            yield seen
            missed = [
                str(edit.sites[n]) for key, edit in self.edits.items() for n in range(len(edit.sites)) if (key, n) not in seen
            ]
            if missed:
                raise RuntimeError(f"The forward never ran the module of {', '.join(missed)}: nothing was edited there.")

    @contextmanager
    def attached(self, editor: Editor) -> Iterator[None]:
        """Hook what `editor` makes on every site."""
        with ExitStack() as stack:
            for key, edit in self.edits.items():
                stack.enter_context(edit.intervention.basis.made_once())
                found = [self.flags[v] for v in variables_of(key, edit)]
                idle = all(flag is not None and not bool(flag.any()) for flag in found)
                for number, site in enumerate(edit.sites):
                    source: Source
                    source, active = self.given(key, number)
                    if edit.intervention.skips:
                        source = []
                        stack.callback(self.resolved[block_input(site)].attach(_holder(source)).remove)
                    stack.callback(self.resolved[site].attach(editor(key, number, source, active, idle)).remove)
            yield

    def given(self, key: Variable, number: int) -> tuple[Tensor | dict[str, Tensor] | None, Any]:
        """(source, active) of one site, as the edit takes them."""
        blocks = self.edits[key].intervention.blocks
        if blocks is None:
            return self.values.get((key, number)), self.flags[key]
        sources = {block: self.values[block, number] for block in blocks if (block, number) in self.values}
        return sources, _present({block: self.flags[block] for block in blocks})


def block_input(site: Site) -> Site:
    """What a skipped block would have read. Raises ValueError for a site that is no block's output."""
    if site.component != "block_output":
        raise ValueError(f"SkipIntervention puts the block's own input in place of `block_output`; the site is {site}.")
    return Site("block_input", layer=site.layer, position=site.position)


def _holder(held: list[Tensor]) -> Callable[[Tensor], None]:
    def hold(activation: Tensor) -> None:
        held[:] = [activation.clone()]  # some blocks add to their input in place

    return hold


def _present(flags: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
    """Only the blocks that are not wholly active; None when all are."""
    return {block: flag for block, flag in flags.items() if flag is not None} or None
