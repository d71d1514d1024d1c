"""Coarser models from finer ones: variables merged, marginalised, dropped (arXiv 2301.04709)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from operator import itemgetter
from typing import Any

from iit.causal.model import CausalModel, Mechanism

NOTHING = object()
"""Stands for a value that was not given: None may be a value."""
PartialSetting = dict[str, Any]
"""{variable: its value}, of some variables or of all."""


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
            f"{model.name}: the output {model.output!r} cannot be merged; add a variable "
            "that copies it, and make that one the output."
        )
    if name in model.variables and name not in members:
        raise ValueError(f"{model.name}: the name {name!r} is taken by another variable.")
    # The members in the order of computation, and what they read from outside.
    inside = sorted(members, key=model.order.index)
    reads = dict.fromkeys(chain.from_iterable(map(model.parents, inside)))
    outside = [parent for parent in reads if parent not in members]

    def joint(setting: PartialSetting) -> tuple[Any, ...]:
        for v in inside:
            setting[v] = _computed(model, v, setting)
        return itemgetter(*members)(setting)

    def taken_apart(setting: PartialSetting) -> PartialSetting:
        return setting | dict(zip(members, setting[name], strict=True))

    stand_ins = dict.fromkeys(members, (name,))
    domain = None
    domains: list[Any] = list(map(model.domains.get, members))
    if None not in domains:
        domain = tuple(product(*domains))
    mechanism = None if inputs else _mechanism(outside, joint)
    return _without(model, stand_ins, taken_apart, (name, mechanism, domain))


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

    def completed(setting: PartialSetting) -> PartialSetting:
        return setting | {variable: _computed(model, variable, setting)}

    return _without(model, {variable: parents}, completed)


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
        if v in model.mechanisms and v not in fixed and fixed.keys() >= set(model.parents(v)):
            fixed[v] = _computed(model, v, fixed)
    if model.output in fixed:
        raise ValueError(
            f"{model.name}: without {variable!r} the output {model.output!r} does not "
            "depend on anything."
        )

    return _without(model, dict.fromkeys(fixed, ()), lambda setting: setting | fixed)


def _computed(model: CausalModel, variable: str, setting: PartialSetting) -> Any:
    """What the variable's mechanism makes of its parents' values in a setting."""
    return model.mechanisms[variable](*(setting[p] for p in model.parents(variable)))


def _without(
    model: CausalModel,
    stand_ins: Mapping[str, Sequence[str]],
    completed: Callable[[PartialSetting], PartialSetting],
    new: tuple[str, Mechanism | None, Sequence[Any] | None] | None = None,
) -> CausalModel:
    """The model without some variables.

    Arguments:
        model: the finer model.
        stand_ins: {removed variable: what its children read in its place}.
        completed: takes {stand-in: value}, and returns it with the values of the removed variables.
        new: name, mechanism (None for an input) and domain of a variable that is added.
    """
    inputs = {v: domain for v, domain in model.inputs.items() if v not in stand_ins}
    mechanisms: dict[str, Mechanism] = {}
    domains = dict(model.domains)
    if new is not None:
        name, mechanism, domain = new
        if mechanism is None:
            inputs[name] = domain
        else:
            mechanisms[name], domains[name] = mechanism, domain
    for variable, mechanism in model.mechanisms.items():
        if variable in stand_ins:
            continue
        parents = model.parents(variable)
        if not stand_ins.keys().isdisjoint(parents):
            reads = []
            for parent in parents:
                reads += stand_ins.get(parent, (parent,))
            mechanism = _mechanism(
                list(dict.fromkeys(reads)),
                lambda setting, v=variable: _computed(model, v, completed(setting)),
            )
        mechanisms[variable] = mechanism
    # The domains of computed variables.
    known = {v: domain for v, domain in domains.items() if v in mechanisms}
    return CausalModel(inputs, mechanisms, model.output, model.name, known)


def _mechanism(parents: Sequence[str], value: Callable[[PartialSetting], Any]) -> Mechanism:
    """The mechanism with these parents whose value is a function of {parent: its value}."""

    def mechanism(*values: Any) -> Any:
        return value(dict(zip(parents, values, strict=True)))

    parameter = partial(inspect.Parameter, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # `inspect.signature` reads this attribute, of which the type of a function knows nothing.
    signature = inspect.Signature(list(map(parameter, parents)))
    mechanism.__signature__ = signature  # type: ignore[attr-defined]
    return mechanism
