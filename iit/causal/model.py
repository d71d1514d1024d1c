"""Causal models: variables, their parents, a mechanism for each."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, final

Mechanism = Callable[..., Any]
Setting = dict[str, Any]
"""One value for every variable of a causal model, parents before children."""


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
        self.mechanisms, self.output, self.name = dict(mechanisms), output, name
        # A tuple: in a string, "ab" would be found within "abc". A range is kept, it tells membership at once.
        self.inputs = {v: d if d is None or isinstance(d, range) else tuple(d) for v, d in inputs.items()}
        both = sorted(set(inputs) & set(mechanisms))
        if both:
            raise ValueError(f"{name}: {both} are given both as inputs and by a mechanism.")
        self._parents = {v: _parents(name, v, mechanism) for v, mechanism in self.mechanisms.items()}
        for variable, parents in self._parents.items():
            unknown = [parent for parent in parents if parent not in self.inputs and parent not in self.mechanisms]
            if unknown:
                raise ValueError(
                    f"{name}: the mechanism of {variable!r} reads {unknown}, which do not exist; "
                    f"the variables are {list(self.variables)}."
                )
        if output not in self.variables:
            raise ValueError(f"{name}: the output {output!r} is none of the variables {list(self.variables)}.")
        self.order = self._ordered()
        """The variables, parents before children."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables, inputs first."""
        return (*self.inputs, *self.mechanisms)

    def parents(self, variable: str) -> tuple[str, ...]:
        """What the variable's mechanism reads; nothing for an input. Raises ValueError for an unknown variable."""
        self._check_known([variable])
        return self._parents.get(variable, ())

    def _ordered(self) -> tuple[str, ...]:
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
        """The setting with some variables held at given values, whatever their parents say.

        Raises ValueError as `run` does; an input that is held may be missing from inputs.
        """
        self._check_known(values)
        self._check_known(inputs)
        setting: Setting = {}
        for variable in self.order:  # all inputs come first, so they are checked before any mechanism runs
            if variable in values:
                setting[variable] = values[variable]
            elif variable in self.mechanisms:
                setting[variable] = self.mechanisms[variable](*(setting[p] for p in self._parents[variable]))
            elif variable in inputs:
                setting[variable] = inputs[variable]
            else:
                raise ValueError(f"{self.name}: input {variable!r} is missing; the inputs are {list(self.inputs)}.")
            domain = self.inputs.get(variable)
            if domain is not None and setting[variable] not in domain:
                told = ", ".join(map(repr, domain[:6])) + (", …" if len(domain) > 6 else "")
                raise ValueError(f"{self.name}: {variable}={setting[variable]!r} is outside its domain ({told}).")
        return setting

    def interchange(self, base: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Setting:
        """The base's setting after each variable took the value it has in its own source's run (arXiv 2106.02997).

        Everything downstream of them is computed anew. sources: variable → inputs (or a setting) of its source.
        Raises ValueError for a variable the model lacks, and as `run` does.
        """
        self._check_known(sources)
        return self.do(base, {variable: self.run(source)[variable] for variable, source in sources.items()})

    def ancestors(self, variable: str) -> set[str]:
        """All that the variable is computed from, directly or not. Raises ValueError for an unknown variable."""
        found: set[str] = set()
        waiting = list(self.parents(variable))
        while waiting:
            parent = waiting.pop()
            if parent not in found:
                found.add(parent)
                waiting += self.parents(parent)
        return found

    def run_batch(self, inputs: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """`run` of many inputs, given and returned in columns: name → one value a row."""
        return self.do_batch(inputs, {})

    def do_batch(self, inputs: Mapping[str, Sequence[Any]], values: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """`do` of many inputs, each with its own values, in columns. Raises ValueError as `do`, and for columns of other lengths."""
        self._check_known(values)
        self._check_known(inputs)
        lengths = {name: len(column) for name, column in (*inputs.items(), *values.items())}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: the columns differ in length: {lengths}.")
        columns: dict[str, list[Any]] = {}
        for variable in self.order:
            if variable in values:
                columns[variable] = list(values[variable])
            elif variable in self.mechanisms:
                columns[variable] = list(map(self.mechanisms[variable], *(columns[p] for p in self._parents[variable])))
            elif variable in inputs:
                columns[variable] = list(inputs[variable])
            else:
                raise ValueError(f"{self.name}: input {variable!r} is missing; the inputs are {list(self.inputs)}.")
        return columns

    def interchange_batch(
        self, base: Mapping[str, Sequence[Any]], sources: Mapping[str, Mapping[str, Sequence[Any]]]
    ) -> dict[str, list[Any]]:
        """`interchange` of many pairs, in columns."""
        self._check_known(sources)
        inputs = {name: base[name] for name in self.inputs if name in base}
        return self.do_batch(inputs, {v: self.run_batch(source)[v] for v, source in sources.items()})

    def _check_known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.inputs and name not in self.mechanisms]
        if unknown:
            raise ValueError(f"{self.name} has no variable {unknown}; the variables are {list(self.variables)}.")

    def __repr__(self) -> str:
        told = [f"{v} ← {', '.join(self._parents[v])}" for v in self.order if v in self.mechanisms]
        return f"CausalModel({self.name}: inputs {', '.join(self.inputs)}; {'; '.join(told)}; output {self.output})"


def _parents(name: str, variable: str, mechanism: Mechanism) -> tuple[str, ...]:
    parameters = inspect.signature(mechanism).parameters.values()
    for p in parameters:
        if p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty:
            raise ValueError(
                f"{name}: the mechanism of {variable!r} has the argument {str(p)!r}; "
                "each argument must be the plain name of a parent."
            )
    if not parameters:
        raise ValueError(f"{name}: the mechanism of {variable!r} reads nothing; a variable without parents is an input.")
    return tuple(p.name for p in parameters)
