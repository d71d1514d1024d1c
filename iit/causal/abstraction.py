"""Coarser models from finer ones: variables merged, marginalised, dropped (arXiv 2301.04709)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from iit.causal.model import CausalModel, Mechanism

NOTHING = object()
"""Stands for a value that was not given: None may be a value."""


def merge(model: CausalModel, variables: Sequence[str], name: str) -> CausalModel:
    """The model in which several variables are one, whose value is the tuple of their values.

    A mechanism that read one of them reads that member of the tuple.

    Arguments:
        variables: all of them inputs, or all of them computed.
        name: of the merged variable.

    Raises ValueError for fewer than two variables, for unknown ones, for inputs together with
    computed variables, for the output, for a name that is taken, and where the merged variable
    would be its own ancestor.
    """
    # Each once, in the order that the caller gave.
    members = tuple(dict.fromkeys(variables))
    rest = [v for v in model.variables if v not in members]
    if len(members) < 2:
        raise ValueError(
            f"{model.name}: merging takes two variables or more; got {list(variables)}."
        )
    for member in members:
        model.parents(member)  # refuses what does not exist
    inputs = [v for v in members if v in model.inputs]
    if inputs and len(inputs) < len(members):
        raise ValueError(
            f"{model.name}: {inputs} are inputs, the others of {list(members)} are "
            "computed; merge either."
        )
    if model.output in members:
        raise ValueError(
            f"{model.name}: the output {model.output!r} cannot be merged; give it a child first."
        )
    if name in rest:
        raise ValueError(f"{model.name}: the name {name!r} is taken by another variable.")
    # The members in the order of computation, and what they read from outside.
    inside = [v for v in model.order if v in members]
    outside = tuple(dict.fromkeys(p for v in inside for p in model.parents(v) if p not in members))
    slot = {member: index for index, member in enumerate(members)}

    # The mechanism of the merged variable.
    def joint(*values: Any) -> tuple[Any, ...]:
        by_name = dict(zip(outside, values, strict=True))
        for v in inside:
            by_name[v] = model.mechanisms[v](*(by_name[p] for p in model.parents(v)))
        return tuple(by_name[v] for v in members)

    # The mechanism of a variable that reads members: it takes them out of the tuple.
    def reading(variable: str) -> Mechanism:
        parents = model.parents(variable)
        new_parents = tuple(dict.fromkeys(name if p in slot else p for p in parents))

        def mechanism(*values: Any) -> Any:
            by_name = dict(zip(new_parents, values, strict=True))
            return model.mechanisms[variable](
                *(by_name[name][slot[p]] if p in slot else by_name[p] for p in parents)
            )

        return _with_parents(mechanism, new_parents)

    domains = [model.domains.get(v) for v in members]
    domain = (
        None if any(d is None for d in domains) else tuple(product(*(d or () for d in domains)))
    )
    mechanisms = {
        v: reading(v) if any(p in slot for p in model.parents(v)) else f
        for v, f in model.mechanisms.items()
        if v not in members
    }
    return _rebuilt(
        model,
        {v: d for v, d in model.inputs.items() if v not in members}
        | ({name: domain} if inputs else {}),
        mechanisms if inputs else {name: _with_parents(joint, outside)} | mechanisms,
        {} if inputs or domain is None else {name: domain},
    )


def marginalise(model: CausalModel, variable: str) -> CausalModel:
    """The model without a computed variable: its children compute it themselves, from its parents.

    The output stays what it was, for all inputs and all interchanges of other variables.

    Raises ValueError for an unknown variable, for an input, and for the output.
    """
    parents = model.parents(variable)
    if variable in model.inputs:
        raise ValueError(
            f"{model.name}: {variable!r} is an input, which nothing computes; `drop` it with a "
            "value instead."
        )
    if variable == model.output:
        raise ValueError(f"{model.name}: {variable!r} is the output; it has to stay.")

    # The mechanism of a child. In its place among the child's parents stand the variable's own.
    def through(child: str) -> Mechanism:
        reads = model.parents(child)
        new_parents = tuple(
            dict.fromkeys(q for p in reads for q in (parents if p == variable else (p,)))
        )

        def mechanism(*values: Any) -> Any:
            setting = dict(zip(new_parents, values, strict=True))
            if variable in reads:
                setting[variable] = model.mechanisms[variable](*(setting[p] for p in parents))
            return model.mechanisms[child](*(setting[p] for p in reads))

        return _with_parents(mechanism, new_parents)

    mechanisms = {
        v: through(v) if variable in model.parents(v) else f
        for v, f in model.mechanisms.items()
        if v != variable
    }
    return _rebuilt(model, model.inputs, mechanisms)


def drop(model: CausalModel, variable: str, value: Any = NOTHING) -> CausalModel:
    """The model without a variable: mechanisms that read it read a fixed value in its place.

    Rivals can be written in this way: addition without a carry is `drop(addition, "ones_carry",
    0)`. A variable that reads nothing else becomes constant, and is dropped as well.

    Arguments:
        value: the fixed value. It may be left out where no mechanism reads the variable.

    Raises ValueError for an unknown variable, for a variable that is read where no value is given,
    for a value outside the variable's domain, and where the output would be constant.
    """
    model.parents(variable)  # refuses what does not exist
    readers = [v for v in model.mechanisms if variable in model.parents(v)]
    if readers and value is NOTHING:
        raise ValueError(
            f"{model.name}: {readers} read {variable!r}; say which value they are to read instead."
        )
    if value is not NOTHING:
        model.check_value(variable, value)
    fixed = {variable: value}
    # A variable whose parents are all fixed is fixed, too.
    for v in model.order:
        if v in model.mechanisms and v not in fixed and all(p in fixed for p in model.parents(v)):
            fixed[v] = model.mechanisms[v](*(fixed[p] for p in model.parents(v)))
    if model.output in fixed:
        raise ValueError(
            f"{model.name}: without {variable!r} the output {model.output!r} does not "
            "depend on anything."
        )

    def reading(child: str) -> Mechanism:
        reads = model.parents(child)

        def mechanism(*values: Any) -> Any:
            # The parents that are not fixed, in their order.
            unfixed = iter(values)
            return model.mechanisms[child](
                *(fixed[p] if p in fixed else next(unfixed) for p in reads)
            )

        return _with_parents(mechanism, tuple(p for p in reads if p not in fixed))

    mechanisms = {
        v: reading(v) if any(p in fixed for p in model.parents(v)) else f
        for v, f in model.mechanisms.items()
        if v not in fixed
    }
    return _rebuilt(model, {v: d for v, d in model.inputs.items() if v not in fixed}, mechanisms)


def _rebuilt(
    model: CausalModel,
    inputs: Mapping[str, Sequence[Any] | None],
    mechanisms: Mapping[str, Mechanism],
    domains: Mapping[str, Sequence[Any]] | None = None,
) -> CausalModel:
    # Domains of variables that are still there.
    rest = {v: d for v, d in model.domains.items() if v in mechanisms and d is not None}
    return CausalModel(inputs, mechanisms, model.output, model.name, rest | dict(domains or {}))


def _with_parents(mechanism: Callable[..., Any], parents: Sequence[str]) -> Mechanism:
    """The function, with these parents as the names of its arguments."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # `inspect.signature` reads this attribute, of which the type of a function knows nothing.
    signature = inspect.Signature([inspect.Parameter(parent, kind) for parent in parents])
    mechanism.__signature__ = signature  # type: ignore[attr-defined]
    return mechanism
