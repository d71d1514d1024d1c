"""One run under edits: what is hooked where, and with which source.

Either the whole network runs, or only a suffix of the run, which begins at the first block and the
first position that its edits change (see `iit.intervened.resume`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from iit.batch import IGNORED, Batch
from iit.intervened.checkpointing import autograd_state
from iit.intervened.edit import Edit, Variable, block_input
from iit.intervened.positions import SiteColumns
from iit.intervened.resume import Suffix
from iit.site import ResolvedSite, Site, Sites

Flags = Mapping[Variable, Tensor | None]
"""{variable: Tensor[batch] of bool}, which examples its edit touches; None for every example."""


def any_active(flag: Tensor | None) -> bool:
    """Whether an edit touches any example."""
    return flag is None or bool(flag.any())


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """What an edit does at one of its sites in one batch.

    Arguments:
        edit: the edit.
        resolved: the site, as it was found in the network.
        columns: where the base is edited.
        source_site: where the source is read.
        flags: {variable: which examples it is active in}, for the variables of the edit.
        sources: {variable: Tensor[batch, position, width]}, what is read of its source.
        counts: {variable: Tensor[batch]}, how many positions each example of its source has; None
            for all. Both are empty until `read_sources` has filled them.
    """

    edit: Edit
    resolved: ResolvedSite
    columns: SiteColumns
    source_site: Site
    flags: Flags
    sources: dict[Variable, Tensor] = field(default_factory=dict)
    counts: dict[Variable, Tensor | None] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether no example is active."""
        return not any(map(any_active, self.flags.values()))

    def apply(self, base: Tensor, skipped: Tensor | None = None) -> Tensor:
        """The new activation at these columns, Tensor[batch, position, width].

        Arguments:
            skipped: the input of a skipped block at these columns, in place of a source.
        """
        sources = self.sources if skipped is None else dict.fromkeys(self.flags, skipped)
        return self.edit.apply(base, sources, self.flags)


Hook = Callable[[SiteEdit, Tensor, Tensor | None], Tensor | None]
"""(site edit, activation, skipped) → the new activation; None leaves the activation as it is.

For an edit that skips a block, `skipped` is the block's input; for other edits it is None.
"""


@dataclass(frozen=True)
class EditedRun:
    """The edits of one batch, checked and with their sources read.

    Arguments:
        batch: the base.
        resolved: the sites of the network that runs.
        sites: {key: what its edit does at each of its sites}, with the keys of the model's edits.
        flags: {variable: which examples it is active in}, for all variables.
        trains: whether a backward through the run would reach weights.
    """

    batch: Batch
    resolved: Sites
    sites: Mapping[Variable, list[SiteEdit]]
    flags: Flags
    trains: bool

    def without(self, variables: Collection[Variable]) -> "EditedRun":
        """The same run under the other edits alone."""
        sites = {key: edits for key, edits in self.sites.items() if key not in variables}
        return replace(self, sites=sites)

    @property
    def site_edits(self) -> list[SiteEdit]:
        """What all edits do at their sites, in the order of the edits."""
        return [site_edit for site_edits in self.sites.values() for site_edit in site_edits]

    def span(self, answer_columns: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of each example that a resumed run has to run.

        They begin at the first column that is edited or read, and end with the last one that is
        read. An edit of every position, or of attention weights (whose width is the number of
        keys), needs all columns.

        Arguments:
            answer_columns: Tensor[batch, n_read], the columns where the answer is read.

        Returns (first, stop), Tensor[batch] each; `stop` is the column behind the last one.
        """
        first, stop = answer_columns.min(1).values, answer_columns.max(1).values + 1
        for site_edit in self.site_edits:
            index = site_edit.columns.index
            if index is None or site_edit.columns.site.component == "attention_weight":
                return torch.zeros_like(first), torch.full_like(stop, self.batch.tokens.shape[1])
            # An absent entry (−100) is replaced by a column that does not change the minimum.
            present = torch.where(index == IGNORED, first.unsqueeze(1), index)
            first = torch.minimum(first, present.min(1).values)
        return first, stop

    @contextmanager
    def applied(
        self, suffix: Suffix | None = None, rows: slice = slice(None)
    ) -> Iterator[dict[SiteEdit, Tensor]]:
        """Within the context the network's next forward, or its suffix, is edited.

        Arguments:
            suffix: what is left to run, where the run is resumed; its columns count from its start.
            rows: which rows of the forward are this run's, where several runs share it.

        Yields {site edit: Tensor[batch, position, width]}, the activations before the edit. The
        forward fills it.

        Raises RuntimeError where a site's module runs twice or never, and where a backward would
        miss the edit.
        """
        activations: dict[SiteEdit, Tensor] = {}
        outside = autograd_state() if self.trains else (False, None)

        def edited(site_edit: SiteEdit, whole: Tensor, skipped: Tensor | None) -> Tensor | None:
            site, columns = site_edit.columns.site, site_edit.columns
            if site_edit in activations:
                raise RuntimeError(
                    f"Site {site} was run more than once in one forward; name a module that runs "
                    "once."
                )
            if outside[0] and autograd_state() != outside:
                raise RuntimeError(
                    f"Site {site} is inside a checkpointed (or gradient-free) part of the network: "
                    "a backward would not see the edit. Take a site outside of it, switch the "
                    "checkpointing off, or run under torch.no_grad()."
                )
            if suffix is not None:
                columns = suffix.renumbered_site(columns, rows)

            activation = whole[rows]
            # `read` copies, so this stays the activation before the edit.
            activations[site_edit] = columns.read(activation)
            if site_edit.idle or site_edit.edit.intervention.collects:
                return None
            if skipped is not None:
                skipped = columns.read(skipped[rows])
            edited_part = site_edit.apply(activations[site_edit], skipped)
            new = columns.write(activation, edited_part)
            if len(new) == len(whole):
                return new
            # The rows of other runs pass unchanged.
            return torch.cat([whole[: rows.start], new, whole[rows.stop :]])

        with self.attached(edited):
            # The forward runs here.
            yield activations
            for site_edit in self.site_edits:
                if site_edit not in activations:
                    raise RuntimeError(
                        f"The forward never ran the module of {site_edit.columns.site}: nothing "
                        "was edited there."
                    )

    @contextmanager
    def attached(self, hook: Hook) -> Iterator[None]:
        """Within the context `hook` sees the activation of every site."""
        with ExitStack() as stack:
            for site_edit in self.site_edits:
                # A rotation is computed once for all sites of the run.
                stack.enter_context(site_edit.edit.intervention.basis.caching())
                inputs: list[Tensor] = []
                if site_edit.edit.intervention.skips:
                    before = self.resolved[block_input(site_edit.columns.site)]
                    # The block's input is hooked first, so it is there when the output's hook runs.
                    stack.callback(before.attach(partial(_hold, inputs)).remove)
                edited = partial(_edited, hook, site_edit, inputs)
                stack.callback(site_edit.resolved.attach(edited).remove)
            yield


def _hold(inputs: list[Tensor], activation: Tensor) -> None:
    # A copy: some blocks add to their input in place.
    inputs.append(activation.clone())


def _edited(
    hook: Hook, site_edit: SiteEdit, inputs: list[Tensor], activation: Tensor
) -> Tensor | None:
    return hook(site_edit, activation, inputs.pop() if inputs else None)
