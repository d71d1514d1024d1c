"""Causal models: variables, their parents, a mechanism for each."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, final

Mechanism = Callable[..., Any]
Setting = dict[str, Any]
"""One value for every variable of a causal model."""


@final
class CausalModel:
    """A hypothesis: exogenous inputs, and variables each computed from its parents by a mechanism.

    inputs: name → its domain, or None where any value may occur.
    mechanisms: name → plain function; its arguments' names are the variable's parents.
    output: the variable whose value is the label.

    Raises ValueError for cycles, unknown parents, mechanisms whose arguments are not plain names, names that are both
    input and mechanism, and an output that does not exist.

    >>> model = CausalModel(
    ...     inputs={"x": range(10), "y": range(10)},
    ...     mechanisms={"sum": lambda x, y: x + y, "even": lambda sum: sum % 2 == 0},
    ...     output="even",
    ... )
    >>> model.run({"x": 1, "y": 2})
    {'x': 1, 'y': 2, 'sum': 3, 'even': False}
    >>> model.interchange({"x": 1, "y": 2}, {"sum": {"x": 2, "y": 2}})["even"]
    True
    """

    def __init__(
        self,
        inputs: Mapping[str, Sequence[Any] | None],
        mechanisms: Mapping[str, Mechanism],
        output: str,
        name: str = "causal model",
    ):
        self.inputs, self.mechanisms, self.output, self.name = dict(inputs), dict(mechanisms), output, name
        both = sorted(set(inputs) & set(mechanisms))
        if both:
            raise ValueError(f"{name}: {both} are given both as inputs and by a mechanism.")
        self._parents = {v: _parents(name, v, mechanism) for v, mechanism in self.mechanisms.items()}
        for variable, parents in self._parents.items():
            unknown = [parent for parent in parents if parent not in self.inputs and parent not in self.mechanisms]
            if unknown:
                raise ValueError(
                    f"{name}: the mechanism of {variable!r} reads {unknown}, which do not exist; the variables are {list(self.variables)}."
                )
        if output not in self.variables:
            raise ValueError(f"{name}: the output {output!r} is none of the variables {list(self.variables)}.")
        _ = self.order

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables, inputs first."""
        return (*self.inputs, *self.mechanisms)

    def parents(self, variable: str) -> tuple[str, ...]:
        """What the variable's mechanism reads; nothing for an input. Raises ValueError for an unknown variable."""
        self._check_known([variable])
        return self._parents.get(variable, ())

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The variables, parents before children."""
        graph = {v: self._parents.get(v, ()) for v in self.variables}
        try:
            return tuple(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ValueError(f"{self.name}: the mechanisms form a cycle: {' → '.join(error.args[1])}.") from error

    def run(self, inputs: Mapping[str, Any]) -> Setting:
        """The setting that follows from inputs (a setting may be given: only its inputs are read).

        Raises ValueError for missing or unknown inputs and for values outside their domain.
        """
        return self.do(inputs, {})

    def do(self, inputs: Mapping[str, Any], values: Mapping[str, Any]) -> Setting:
        """The setting with some variables held at given values, whatever their parents say."""
        self._check_known(values)
        self._check_known(inputs)
        exogenous = {}
        for variable, domain in self.inputs.items():
            if variable not in inputs and variable not in values:
                raise ValueError(f"{self.name}: input {variable!r} is missing; the inputs are {list(self.inputs)}.")
            value = values[variable] if variable in values else inputs[variable]
            if domain is not None and value not in self._domain(variable):
                told = ", ".join(map(repr, list(domain)[:6])) + (", …" if len(domain) > 6 else "")
                raise ValueError(f"{self.name}: {variable}={value!r} is outside its domain ({told}).")
            exogenous[variable] = value
        setting: Setting = {}
        for variable in self.order:
            if variable in exogenous:
                setting[variable] = exogenous[variable]
            elif variable in values:
                setting[variable] = values[variable]
            else:
                setting[variable] = self.mechanisms[variable](*(setting[p] for p in self._parents[variable]))
        return {variable: setting[variable] for variable in self.variables}

    def interchange(self, base: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Setting:
        """The base's setting after each variable took the value it has in its own source's run (arXiv 2106.02997).

        sources: variable → inputs of its source. Raises ValueError for a variable the model lacks.
        """
        self._check_known(sources)
        return self.do(base, {variable: self.run(source)[variable] for variable, source in sources.items()})

    def _check_known(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.inputs and name not in self.mechanisms]
        if unknown:
            raise ValueError(f"{self.name} has no variable {unknown}; the variables are {list(self.variables)}.")

    def _domain(self, variable: str) -> Any:
        if variable not in self._domains:
            domain = self.inputs[variable]
            assert domain is not None
            hashable = not isinstance(domain, range) and all(isinstance(value, Hashable) for value in domain)
            self._domains[variable] = frozenset(domain) if hashable else domain
        return self._domains[variable]

    @cached_property
    def _domains(self) -> dict[str, Any]:
        return {}

    def __repr__(self) -> str:
        told = [f"{v} ← {', '.join(self._parents[v])}" for v in self.order if v in self.mechanisms]
        return f"CausalModel({self.name}: inputs {', '.join(self.inputs)}; {'; '.join(told)}; output {self.output})"


def _parents(name: str, variable: str, mechanism: Mechanism) -> tuple[str, ...]:
    parameters = inspect.signature(mechanism).parameters.values()
    for p in parameters:
        if p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty:
            raise ValueError(
                f"{name}: the mechanism of {variable!r} has the argument {str(p)!r}; each argument must be the plain name of a parent."
            )
    if not parameters:
        raise ValueError(f"{name}: the mechanism of {variable!r} reads nothing; a variable without parents is an input.")
    return tuple(p.name for p in parameters)
