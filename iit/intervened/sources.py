"""Which source each variable of an edit reads, checked against the base before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from iit.intervened.batch import Batch, Inputs, prepare
from iit.intervened.edit import Edit, Variable, variables_of
from iit.intervened.edited_run import EditedRun, Flags, SiteEdit
from iit.intervened.observe import Activations
from iit.intervened.paired import as_base, keys_as_base
from iit.intervened.positions import Columns, columns, counts
from iit.site import Site

Sources = Inputs | Activations | Mapping[Variable, Any] | None
"""One batch (or its activations) for all variables, or {variable or site: batch | activations}."""
Active = Mapping[Variable, bool | Tensor] | None


def by_variable(
    edits: Mapping[Variable, Edit],
    sources: Sources,
    flags: Flags,
) -> dict[Variable, Any]:
    """What each active variable that reads a source was given.

    Raises ValueError for unknown variables, for sources nobody reads, and where one is missing.
    """
    reads: dict[Variable, bool] = {}
    for key, edit in edits.items():
        reads |= dict.fromkeys(variables_of(key, edit), edit.intervention.needs_source)
    known = [str(variable) for variable in reads]
    if (
        isinstance(sources, Mapping)
        and not isinstance(sources, Activations)
        and _is_by_variable(sources, reads)
    ):
        unknown = [str(v) for v in sources if v not in reads]
        if unknown:
            raise ValueError(f"Sources are given for {unknown}; the variables are {known}.")
        needless = [str(v) for v, source in sources.items() if source is not None and not reads[v]]
        if needless:
            names = ", ".join(needless)
            raise ValueError(
                f"{names}: a source is given, but the intervention reads none. Leave it out."
            )
    elif sources is not None and not any(reads.values()):
        raise ValueError(
            f"A source is given, but no intervention reads one (variables: {known}). Leave it out."
        )
    else:
        sources = dict.fromkeys(reads, sources)
    named = {}
    for variable, needs_source in reads.items():
        flag = flags[variable]
        if needs_source and (flag is None or bool(flag.any())):
            # The keys are variables, as checked above.
            named[variable] = sources.get(variable)  # pyright: ignore[reportArgumentType]
            if named[variable] is None:
                raise ValueError(
                    f"Variable {str(variable)!r} is active and its intervention needs a source; "
                    "none was given."
                )
    return named


def _is_by_variable(sources: Mapping[Any, Any], known: Mapping[Variable, bool]) -> bool:
    if any(key in known or isinstance(key, Site) for key in sources):
        return True
    return all(isinstance(value, Mapping) for value in sources.values())


def activity(
    known: tuple[Variable, ...], active: Active, batch: Batch
) -> dict[Variable, Tensor | None]:
    """Which examples each variable's edit touches, as `Flags`."""
    flags: dict[Variable, Tensor | None] = dict.fromkeys(known)
    for variable, flag in (active or {}).items():
        if variable not in flags:
            raise ValueError(
                f"`active` names {str(variable)!r}; the variables are {[str(v) for v in known]}."
            )
        tensor = torch.as_tensor(flag, dtype=torch.bool)
        if tensor.ndim == 0:
            tensor = tensor.expand(batch.size)
        if tensor.shape != (batch.size,):
            raise ValueError(
                f"`active[{variable}]` has shape {tuple(tensor.shape)}; the batch holds "
                f"{batch.size} examples."
            )
        flags[variable] = None if bool(tensor.all()) else tensor.to(batch.device)
    return flags


@dataclass
class _Source:
    """A source that the user gave: a batch, which is run once for all sites that are read, or
    activations.

    places: the sites that are read of a batch. seen: the activations; those of a batch after its
        run.
    """

    batch: Batch | None = None
    seen: Activations = field(default_factory=lambda: Activations({}))
    places: dict[Site, Columns] = field(default_factory=dict)

    def check(self, one: SiteEdit, variable: Variable, base: Batch) -> None:
        """Raises ValueError where it does not fit the site of the base that reads it."""
        site, place, flag = one.source_site, one.columns, one.flags[variable]
        if self.batch is not None:
            self.places.setdefault(site, columns(site, self.batch, flag))
            theirs = counts(self.places[site], self.batch)
        elif site in self.seen:
            theirs = self.seen.counts.get(site)
        else:
            known = [str(s) for s in self.seen]
            raise ValueError(
                f"The activations given as a source hold {known}, not the source site {site}."
            )
        own = counts(place, base)
        if own is not None and theirs is not None:
            differ = (own != theirs.to(own.device)) & (True if flag is None else flag)
            if bool(differ.any()):
                row = int(differ.nonzero()[0])
                raise ValueError(
                    f"Variable {str(variable)!r}, example {row}: site {place.site} selects "
                    f"{int(own[row])} positions in "
                    f"the base and {int(theirs[row])} in the source; spans must be of equal length."
                )
        if self.batch is None:
            _check_shape(self.seen[site], one, variable, base.size)

    def laid_out(self, one: SiteEdit, variable: Variable, base: Batch) -> Tensor:
        """Tensor[batch, position, width] as the site of the base that reads it."""
        site, tensor = one.source_site, self.seen[one.source_site]
        if self.batch is not None and site.component == "attention_weight":
            tensor = keys_as_base(tensor, base, self.batch, one.flags[variable])
        return as_base(tensor, one.columns, self.places.get(site, one.columns))


def read_sources(
    run: EditedRun,
    given: Mapping[Variable, Any],
    read: Callable[[Batch, dict[Site, Columns]], Activations],
) -> None:
    """Fill in what each site of a run reads. Each distinct batch is run once.

    given: as `by_variable` gives it. read: runs a batch.
    Raises ValueError for a source that does not fit the base, before a batch is run.
    """
    distinct: dict[int, _Source] = {}
    sites = [one.source_site for one in run.site_edits]
    readings = [(one, v) for one in run.site_edits for v in one.flags if v in given]
    for one, variable in readings:
        name = id(given[variable])
        if name not in distinct:
            network = run.resolved.network
            distinct[name] = _source(network, given[variable], run.batch, sites, variable)
        distinct[name].check(one, variable, run.batch)
    for source in distinct.values():
        if source.batch is not None:
            source.seen = read(source.batch, source.places)
    for one, variable in readings:
        source = distinct[id(given[variable])]
        one.sources[variable] = source.laid_out(one, variable, run.batch)


def _source(
    network: nn.Module,
    given: Any,
    base: Batch,
    sites: Sequence[Site],
    variable: Variable,
) -> _Source:
    if isinstance(given, Tensor) and base.kwargs:
        # A network fed by keyword never takes a bare tensor as its batch.
        given = Activations(dict.fromkeys(sites, given))
    if isinstance(given, Activations):
        return _Source(seen=given)
    if isinstance(given, Tensor):
        _check_is_input(given, sites, base)
    batch = prepare(network, given).at_answer(network, sites)
    if batch.size != base.size:
        raise ValueError(
            f"The source of {str(variable)!r} holds {batch.size} examples, the base {base.size}; "
            "they must be paired."
        )
    return _Source(batch)


def _check_is_input(source: Tensor, sites: Sequence[Site], base: Batch) -> None:
    """Raise ValueError for a bare tensor unlike the base's input: a network fed by position would
    run on activations.
    """
    like = base.args[0]
    if not isinstance(like, Tensor):
        return
    same_kind = source.is_floating_point() == like.is_floating_point()
    same_shape = source.ndim == like.ndim and (
        not like.is_floating_point() or source.shape[1:] == like.shape[1:]
    )
    if not (same_kind and same_shape):
        raise ValueError(
            f"The source is a bare tensor of shape {tuple(source.shape)}, and this network takes "
            "bare tensors as inputs, of "
            f"shape {tuple(like.shape)}. Give activations as iit.Activations({{Site: tensor}}), "
            "and an input "
            f"of another shape as a tuple: (tensor,). The sites are {', '.join(map(str, sites))}."
        )


def _check_shape(activations: Tensor, one: SiteEdit, variable: Variable, size: int) -> None:
    """Raises ValueError for activations that are not [size, position, width] as the site that reads
    them."""
    site, n_positions = one.columns.site, one.columns.n_positions
    if site.module is not None and site.position is None:
        n_positions = None  # the module may have positions of its own
    expected, shape = (size, n_positions, one.resolved.width), tuple(activations.shape)
    if len(shape) == 3 and all(
        n in (None, length) for n, length in zip(expected, shape, strict=True)
    ):
        return
    names = zip(expected, ("batch", "position", "width"), strict=True)
    told = ", ".join(name if n is None else str(n) for n, name in names)
    raise ValueError(
        f"The activations given for {str(variable)!r} have shape {shape}; expected [{told}] for "
        f"site {site}."
    )
