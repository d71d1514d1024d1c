"""Which source each variable of an edit reads, checked against the base before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iit.batch import Batch, Inputs
from iit.intervened.aligned_source import as_base, keys_as_base
from iit.intervened.edit import Edit, Variable, variables_of
from iit.intervened.edited_run import EditedRun, Flags, SiteEdit, any_active
from iit.intervened.observe import Activations
from iit.intervened.positions import SiteColumns, columns, counts, prepare_at
from iit.site import Site

SourceInputs = Inputs | Activations | Mapping[Variable, Any] | None
"""One batch (or its activations) for all variables, or {variable or site: batch | activations}."""
Active = Mapping[Variable, bool | Tensor] | None
"""{variable: bool, or Tensor[batch] of bool}: which examples an edit touches; by default all."""


def by_variable(
    edits: Mapping[Variable, Edit],
    sources: SourceInputs,
    flags: Flags,
) -> dict[Variable, Any]:
    """The source of each active variable whose intervention reads one.

    Arguments:
        flags: which examples each variable's edit touches.

    Raises ValueError for unknown variables, for sources that no intervention reads, and for a
    missing source.
    """
    reads: dict[Variable, bool] = {}
    for key, edit in edits.items():
        # Each block is a variable of its own.
        reads |= dict.fromkeys(variables_of(key, edit), edit.intervention.needs_source)

    if not _is_by_variable(sources, reads):
        if sources is not None and not any(reads.values()):
            raise ValueError("A source is given, but no intervention reads one. Leave it out.")
        # One batch (or its activations) serves all variables that read one.
        sources = {variable: sources for variable in reads if reads[variable]}
    by_name: Any = sources
    for variable, source in by_name.items():
        if variable not in reads:
            raise ValueError(
                f"Sources are given for {[str(variable)]}; the variables are "
                f"{list(map(str, reads))}."
            )
        if source is not None and not reads[variable]:
            raise ValueError(
                f"{variable}: a source is given, but the intervention reads none. Leave it out."
            )

    chosen = {}
    for variable, needs_source in reads.items():
        # A variable that is active in no example needs no source.
        if needs_source and any_active(flags[variable]):
            chosen[variable] = by_name.get(variable)
            if chosen[variable] is None:
                raise ValueError(
                    f"Variable {str(variable)!r} is active and its intervention needs a source; "
                    "none was given."
                )
    return chosen


def _is_by_variable(sources: Any, known: Mapping[Variable, bool]) -> bool:
    """Whether sources are given by variable, rather than as the inputs of one batch.

    A mapping of mappings counts as such, so that a variable's wrong name is an error.
    """
    if not isinstance(sources, Mapping) or isinstance(sources, Activations):
        return False
    if any(key in known or isinstance(key, Site) for key in sources):
        return True
    return all(isinstance(value, Mapping) for value in sources.values())


def flags_of(
    known: tuple[Variable, ...], active: Active, batch: Batch
) -> dict[Variable, Tensor | None]:
    """Which examples each variable's edit touches, as `Flags`.

    Raises ValueError for unknown variables, and for flags of another batch size.
    """
    flags: dict[Variable, Tensor | None] = dict.fromkeys(known)
    for variable, flag in (active or {}).items():
        if variable not in flags:
            raise ValueError(
                f"`active` names {str(variable)!r}; the variables are {list(map(str, known))}."
            )
        tensor = torch.as_tensor(flag, dtype=torch.bool)
        if tensor.shape not in ((), (batch.size,)):
            raise ValueError(
                f"`active[{variable}]` has shape {tuple(tensor.shape)}; the batch holds "
                f"{batch.size} examples."
            )
        # None is the short form of all True.
        if not bool(tensor.all()):
            # One bool is for the whole batch.
            flags[variable] = tensor.expand(batch.size).to(batch.device)
    return flags


@dataclass
class _UserSource:
    """One source that the user gave: a batch, which is run once for all its sites, or activations.

    Arguments:
        batch: the batch; None where the user gave activations.
        activations: the user's, or those of the batch after its run.
        site_columns: {site: its columns in the batch}, for the sites that are read.
    """

    batch: Batch | None
    activations: Activations
    site_columns: dict[Site, SiteColumns] = field(default_factory=dict)

    def check(self, site_edit: SiteEdit, variable: Variable, base: Batch) -> None:
        """Raises ValueError where the source does not fit the site of the base that reads it."""
        site, base_columns = site_edit.source_site, site_edit.columns
        flag = site_edit.flags[variable]
        if self.batch is not None:
            self.site_columns.setdefault(site, columns(site, self.batch, flag))
            n_read = counts(self.site_columns[site], self.batch)
        elif site in self.activations:
            n_read = self.activations.counts.get(site)
        else:
            raise ValueError(
                f"The activations given as a source hold {list(map(str, self.activations))}, not "
                f"the source site {site}."
            )

        n_base = counts(base_columns, base)
        if n_base is not None and n_read is not None:
            differ = n_base != n_read.to(n_base.device)
            # An inactive example is not edited, so its spans may differ.
            if flag is not None:
                differ &= flag
            if bool(differ.any()):
                row = int(differ.nonzero()[0])
                raise ValueError(
                    f"Variable {str(variable)!r}, example {row}: site {base_columns.site} selects "
                    f"{int(n_base[row])} positions in the base and {int(n_read[row])} in the "
                    "source; spans must be of equal length."
                )
        if self.batch is None:
            _check_shape(self.activations[site], site_edit, variable, base.size)

    def laid_out(self, site_edit: SiteEdit, variable: Variable, base: Batch) -> Tensor:
        """What is read at a site, with the base's positions: Tensor[batch, position, width]."""
        site = site_edit.source_site
        tensor = self.activations[site]
        if self.batch is not None and site.component == "attention_weight":
            # Its width is the number of keys, which may differ between base and source.
            tensor = keys_as_base(tensor, base, self.batch, site_edit.flags[variable])
        return as_base(tensor, site_edit.columns, self.site_columns.get(site, site_edit.columns))


def read_sources(
    run: EditedRun,
    named_sources: Mapping[Variable, Any],
    read: Callable[[Batch, dict[Site, SiteColumns]], Activations],
) -> None:
    """Fill in `SiteEdit.sources` of a run; each distinct batch is run once.

    Arguments:
        run: the run, whose site edits have no sources yet.
        named_sources: {variable: source}, as `by_variable` returns them.
        read: runs a batch and returns its activations.

    Raises ValueError for a source that does not fit the base, before a batch is run.
    """
    distinct: dict[int, _UserSource] = {}
    readings: list[tuple[SiteEdit, Variable, _UserSource]] = []
    sites = [site_edit.source_site for site_edit in run.site_edits]
    for site_edit in run.site_edits:
        for variable in site_edit.flags:
            if variable not in named_sources:
                continue
            # Variables that were given the same object share one run.
            key = id(named_sources[variable])
            if key not in distinct:
                distinct[key] = _source(run, named_sources[variable], sites, variable)
            source = distinct[key]
            source.check(site_edit, variable, run.batch)
            readings.append((site_edit, variable, source))
    # Everything is checked by now: only what fits is run.
    for source in distinct.values():
        if source.batch is not None:
            source.activations = read(source.batch, source.site_columns)
    for site_edit, variable, source in readings:
        site_edit.sources[variable] = source.laid_out(site_edit, variable, run.batch)
        site_edit.counts[variable] = source.activations.counts.get(site_edit.source_site)


def _source(run: EditedRun, source: Any, sites: Sequence[Site], variable: Variable) -> _UserSource:
    """What the user gave for a variable, as a batch or as activations."""
    base, network = run.batch, run.resolved.network
    if isinstance(source, Tensor) and base.kwargs:
        # A network fed by keyword never takes a bare tensor as its batch.
        source = Activations(dict.fromkeys(sites, source))
    if isinstance(source, Activations):
        return _UserSource(None, source)
    if isinstance(source, Tensor):
        _check_is_input(source, sites, base)
    # A site at an answer token needs the source's own answer in its prompt.
    batch = prepare_at(network, source, sites)
    if batch.size != base.size:
        raise ValueError(
            f"The source of {str(variable)!r} holds {batch.size} examples, the base {base.size}; "
            "they must be paired."
        )
    return _UserSource(batch, Activations({}))


def _check_is_input(source: Tensor, sites: Sequence[Site], base: Batch) -> None:
    """Raises ValueError for a bare tensor that is unlike the base's input.

    A network that is fed by position would otherwise run on activations.
    """
    like = base.args[0]
    if not isinstance(like, Tensor):
        return
    is_alike = source.ndim == like.ndim
    is_alike &= source.is_floating_point() == like.is_floating_point()
    # Prompts of token ids may differ in length.
    if like.is_floating_point():
        is_alike &= source.shape[1:] == like.shape[1:]
    if not is_alike:
        raise ValueError(
            f"The source is a bare tensor of shape {tuple(source.shape)}, and this network takes "
            f"bare tensors as inputs, of shape {tuple(like.shape)}. Give activations as "
            f"iit.Activations({{Site: tensor}}), and an input of another shape as a tuple: "
            f"(tensor,). The sites are {', '.join(map(str, sites))}."
        )


def _check_shape(activations: Tensor, site_edit: SiteEdit, variable: Variable, size: int) -> None:
    """Raises ValueError for activations that are not [size, position, width] at their site."""
    site = site_edit.columns.site
    n_positions = site_edit.columns.n_positions
    if site.module is not None and site.position is None:
        # The module may have positions of its own.
        n_positions = None
    expected = (size, n_positions, site_edit.resolved.width)
    fits = activations.ndim == 3
    for length, n in zip(activations.shape, expected, strict=False):
        fits &= n in (None, length)
    if not fits:
        names = zip(expected, ("batch", "position", "width"), strict=True)
        layout = ", ".join(name if n is None else str(n) for n, name in names)
        raise ValueError(
            f"The activations given for {str(variable)!r} have shape {tuple(activations.shape)}; "
            f"expected [{layout}] for site {site}."
        )
