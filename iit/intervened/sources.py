"""Which source each variable of an edit reads, checked against the base before anything runs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from iit.intervened.batch import Batch, Inputs, prepare
from iit.intervened.edit import Edit
from iit.intervened.observe import Activations
from iit.intervened.paired import as_base, keys_as_base
from iit.intervened.positions import Columns, columns, counts
from iit.site import ResolvedSite, Site

Variable = str | Site
Sources = Inputs | Activations | Mapping[Variable, Any] | None
"""One batch (or its activations) for all variables, or {variable or site: batch | activations}."""
Active = Mapping[Variable, bool | Tensor] | None


def variables_of(key: Variable, edit: Edit) -> tuple[Variable, ...]:
    """The variables an edit serves: its intervention's blocks, or the name it was given."""
    return edit.intervention.blocks or (key,)


def by_variable(edits: Mapping[Variable, Edit], sources: Sources) -> dict[Variable, Any]:
    """Spread what the user gave over the variables that read a source.

    Raises ValueError for unknown variables and for sources nobody reads.
    """
    readers = [v for key, edit in edits.items() if edit.intervention.needs_source for v in variables_of(key, edit)]
    known = [v for key, edit in edits.items() for v in variables_of(key, edit)]
    if sources is None:
        return {}
    if isinstance(sources, Mapping) and not isinstance(sources, Activations) and _is_by_variable(sources, known):
        unknown = [str(v) for v in sources if v not in known]
        if unknown:
            raise ValueError(f"Sources are given for {unknown}; the variables are {[str(v) for v in known]}.")
        needless = [str(v) for v, source in sources.items() if v not in readers and source is not None]
        if needless:
            raise ValueError(f"{', '.join(needless)}: a source is given, but the intervention reads none. Leave it out.")
        return {v: source for v, source in sources.items() if source is not None}
    if not readers:
        raise ValueError(
            f"A source is given, but no intervention reads one (variables: {[str(v) for v in known]}). Leave it out."
        )
    return dict.fromkeys(readers, sources)


def _is_by_variable(sources: Mapping[Any, Any], known: list[Variable]) -> bool:
    return any(key in known or isinstance(key, Site) for key in sources) or all(
        isinstance(value, Mapping) for value in sources.values()
    )


def activity(known: list[Variable], active: Active, batch: Batch) -> dict[Variable, Tensor | None]:
    """Variable → Tensor[batch] of bool, or None where every example is active."""
    flags: dict[Variable, Tensor | None] = dict.fromkeys(known)
    for variable, flag in (active or {}).items():
        if variable not in flags:
            raise ValueError(f"`active` names {str(variable)!r}; the variables are {[str(v) for v in known]}.")
        tensor = torch.as_tensor(flag, dtype=torch.bool)
        if tensor.ndim == 0:
            tensor = tensor.expand(batch.size)
        if tensor.shape != (batch.size,):
            raise ValueError(f"`active[{variable}]` has shape {tuple(tensor.shape)}; the batch holds {batch.size} examples.")
        device = next((v.device for v in (*batch.kwargs.values(), *batch.args) if isinstance(v, Tensor)), tensor.device)
        flags[variable] = None if bool(tensor.all()) else tensor.to(device)
    return flags


def source_activations(
    network: nn.Module,
    edits: Mapping[Variable, Edit],
    base: Batch,
    places: Mapping[tuple[Variable, int], Columns],
    sources: dict[Variable, Any],
    active: Mapping[Variable, Tensor | None],
    resolved: dict[Site, ResolvedSite],
    *,
    grad: bool,
    read: Callable[..., Activations],
) -> dict[tuple[Variable, int], Tensor]:
    """(variable, number of the site) → Tensor[batch, position, width]; each distinct source batch is run once.

    Raises ValueError for a missing source of an active variable, another batch size, and spans that differ in length.
    """
    wanted: dict[int, tuple[Any, Batch, dict[Site, Columns]]] = {}
    given: dict[tuple[Variable, int], Tensor] = {}
    jobs: list[tuple[Variable, int, Site, int, Columns]] = []
    read_at = [site for edit in edits.values() for site in edit.source_sites]
    for key, edit in edits.items():
        if not edit.intervention.needs_source:
            continue
        for variable in variables_of(key, edit):
            flag = active[variable]
            idle = flag is not None and not bool(flag.any())
            if variable not in sources:
                if not idle:
                    raise ValueError(f"Variable {str(variable)!r} is active and its intervention needs a source; none was given.")
                continue
            source = sources[variable]
            for number, site in enumerate(edit.source_sites):
                place = places[key, number]
                tensor = _given(source, site, base)
                if tensor is not None:
                    _check_counts(place, base, _given_counts(source, site), variable, flag)
                    _check_given(tensor, place, base, variable, resolved[edit.sites[number]].width)
                    whole = place.n_positions not in (None, tensor.shape[1])
                    given[variable, number] = as_base(tensor, place, whole)
                    continue
                if id(source) not in wanted:
                    batch = prepare(network, source).at_answer(network, read_at)
                    if batch.size != base.size:
                        raise ValueError(
                            f"The source of {str(variable)!r} holds {batch.size} examples, the base {base.size}; they must be paired."
                        )
                    wanted[id(source)] = (source, batch, {})
                if idle:
                    continue  # nobody asks what its sites hold
                _, batch, sites = wanted[id(source)]
                if site not in sites:
                    sites[site] = columns(site, batch, flag)
                _check_counts(place, base, counts(sites[site], batch), variable, flag)
                jobs.append((variable, number, site, id(source), place))
    found = {
        identity: read(network, batch, sites, grad=grad, resolved={s: resolved[s] for s in sites})
        for identity, (_, batch, sites) in wanted.items()
        if sites
    }
    for variable, number, site, identity, place in jobs:
        tensor = found[identity][site]
        if site.component == "attention_weight":
            tensor = keys_as_base(tensor, base, wanted[identity][1], active[variable])
        whole = wanted[identity][2][site].n_positions not in (None, tensor.shape[1])
        given[variable, number] = as_base(tensor, place, whole)
    return given


def _given(source: Any, site: Site, base: Batch) -> Tensor | None:
    """The activations among what the user gave as a source, if it is not a batch."""
    if isinstance(source, Activations):
        if site not in source:
            raise ValueError(f"The activations given as a source hold {[str(s) for s in source]}, not the source site {site}.")
        return source[site]
    if isinstance(source, Tensor):
        if base.kwargs:  # A network fed by keyword never takes a bare tensor as its batch.
            return source
        _check_is_input(source, site, base)
    return None


def _check_is_input(source: Tensor, site: Site, base: Batch) -> None:
    """Raise ValueError for a bare tensor unlike the base's input: a network fed by position would run on activations."""
    like = base.args[0]
    if not isinstance(like, Tensor):
        return
    same_kind = source.is_floating_point() == like.is_floating_point()
    same_shape = source.ndim == like.ndim and (not like.is_floating_point() or source.shape[1:] == like.shape[1:])
    if not (same_kind and same_shape):
        raise ValueError(
            f"The source is a bare tensor of shape {tuple(source.shape)}, and this network takes bare tensors as inputs, of "
            f"shape {tuple(like.shape)}. Give activations as iit.Activations({{Site: tensor}}) (here {site}), and an input "
            "of another shape as a tuple: (tensor,)."
        )


def _given_counts(source: Any, site: Site) -> Tensor | None:
    """How many positions each example of given activations has, where they tell."""
    return source.counts.get(site) if isinstance(source, Activations) else None


def _check_given(tensor: Tensor, place: Columns, base: Batch, variable: Variable, width: int | None) -> None:
    own = place.site.module is not None and place.site.position is None  # the module may have positions of its own
    n_positions = None if own else place.n_positions
    expected = (base.size, n_positions, width)
    if tensor.ndim != 3 or any(n not in (None, here) for n, here in zip(expected, tensor.shape, strict=True)):
        told = ", ".join(str(name if n is None else n) for n, name in zip(expected, ("batch", "position", "width"), strict=True))
        raise ValueError(
            f"The activations given for {str(variable)!r} have shape {tuple(tensor.shape)}; expected [{told}] for site {place.site}."
        )


def _check_counts(place: Columns, base: Batch, theirs: Tensor | None, variable: Variable, flag: Tensor | None) -> None:
    own = counts(place, base)
    if own is None or theirs is None:
        return
    differ = (own != theirs.to(own.device)) & (True if flag is None else flag)
    if bool(differ.any()):
        row = int(differ.nonzero()[0])
        raise ValueError(
            f"Variable {str(variable)!r}, example {row}: site {place.site} selects {int(own[row])} positions in the base and "
            f"{int(theirs[row])} in the source; spans must be of equal length."
        )
