"""Causal models: variables, their parents, a mechanism for each."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import islice, product
from math import prod
from operator import itemgetter
from typing import Any, final

import numpy as np

Mechanism = Callable[..., Any]
Column = Sequence[Any] | np.ndarray
"""The values of one variable in many settings."""
ASKED_TWICE = 16
"""How many rows of a batch are computed a second time, to notice what is not deterministic."""


@final
class Setting(dict[str, Any]):
    """One value for every variable of a causal model, parents before children.

    A setting of many examples holds a column of values for each variable.

    Arguments:
        values: {variable: value}.
        held: {variable: value}, the values that `do` or an interchange has fixed. A setting that
            is run again, as base or as source, keeps them. Interchanges can therefore be nested.
    """

    def __init__(self, values: Mapping[str, Any], held: Mapping[str, Any] | None = None):
        super().__init__(values)
        self.held = dict(held or {})


@final
class CausalModel:
    """A hypothesis: inputs, and variables that are each computed from their parents by a mechanism.

    Mechanisms see one example at a time. The methods whose names end in `_batch` do the same for n
    examples: they take and return columns, {name: n values}.

    Arguments:
        inputs: {name: domain}. None stands for a domain of any values.
        mechanisms: {name: plain function}. The names of its arguments are the variable's parents.
        output: the variable whose value is the answer. After an interchange it is the label.
        name: of the model, for messages.
        domains: {computed variable: its domain}, for the variables whose values are to be checked.

    Raises:
        ValueError: cycles; unknown parents; mechanisms whose arguments are not plain names; a name
            that is both an input and a mechanism; an output that does not exist. When the model is
            run: values outside their domain, and a mechanism that gives two values for the same
            parents.

    Example:
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
        domains: Mapping[str, Sequence[Any] | None] | None = None,
    ):
        self.mechanisms, self.output, self.name = dict(mechanisms), output, name
        # Domains become tuples: in the string "abc", the value "ab" would be found. A range stays
        # one, because it tells membership without a search.
        self.inputs = _listed(inputs)
        both = sorted(set(inputs) & set(mechanisms))
        if both:
            raise ValueError(f"{name}: {both} are given both as inputs and by a mechanism.")
        # An input reads nothing.
        self._parents = dict.fromkeys(inputs, ()) | {
            v: _parents(name, v, mechanism) for v, mechanism in mechanisms.items()
        }
        for variable, parents in self._parents.items():
            unknown = self._unknown(parents)
            if unknown:
                raise ValueError(
                    f"{name}: the mechanism of {variable!r} reads {unknown}, which do not exist; "
                    f"the variables are {list(self.variables)}."
                )
        if output not in self.variables:
            raise ValueError(
                f"{name}: the output {output!r} is none of the variables {list(self.variables)}."
            )
        self._check_known(domains or {})
        self.domains = self.inputs | _listed(domains or {})
        """{variable: domain}. Variables that are missing, or have None, may take any value."""
        self._members = {
            v: _members(domain) for v, domain in self.domains.items() if domain is not None
        }
        self.order = self._ordered()
        """The variables, parents before children."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables, inputs first."""
        return (*self.inputs, *self.mechanisms)

    def parents(self, variable: str) -> tuple[str, ...]:
        """The variables that a variable's mechanism reads; none for an input.

        Raises ValueError for an unknown variable.
        """
        self._check_known([variable])
        return self._parents[variable]

    def _ordered(self) -> tuple[str, ...]:
        try:
            return tuple(TopologicalSorter(self._parents).static_order())
        except CycleError as error:
            raise ValueError(
                f"{self.name}: the mechanisms form a cycle: {' → '.join(error.args[1])}."
            ) from error

    def ancestors(self, variable: str) -> set[str]:
        """All variables that a variable is computed from, directly or not.

        Raises ValueError for an unknown variable.
        """
        reached: set[str] = set()
        waiting = list(self.parents(variable))
        while waiting:
            parent = waiting.pop()
            if parent not in reached:
                reached.add(parent)
                waiting += self.parents(parent)
        return reached

    def run(self, inputs: Mapping[str, Any]) -> Setting:
        """The setting that follows from inputs.

        A `Setting` may stand for them: its inputs are run, and the variables that it holds keep
        their values.

        Raises ValueError for missing or unknown inputs, and for values outside their domain.
        """
        return self.do(inputs, {})

    def do(self, inputs: Mapping[str, Any], values: Mapping[str, Any]) -> Setting:
        """The setting with some variables held at given values, whatever their parents say.

        Arguments:
            inputs: as `run` takes them. An input that is held may be missing here.
            values: {variable: the value that it is held at}.

        Raises ValueError as `run` does.
        """
        columns = self.do_batch(_one_row(inputs), _one_row(values))
        return Setting(_first_row(columns), _first_row(columns.held))

    def interchange(
        self, base: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]
    ) -> Setting:
        """The base's setting after each variable took the value that it has in its source's run.

        What these variables cause is computed anew.

        Arguments:
            base: the inputs of the base, or a setting.
            sources: {variable: the inputs of its source}. The setting of another interchange may
                stand for inputs. Its values are then taken, so interchanges can be nested.

        Raises ValueError for a variable that the model lacks, and as `run` does.

        References: arXiv 2106.02997.
        """
        self._check_known(sources)
        return self.do(
            base, {variable: self.run(source)[variable] for variable, source in sources.items()}
        )

    def run_batch(self, inputs: Mapping[str, Column]) -> Setting:
        """`run` of many inputs, in columns."""
        return self.do_batch(inputs, {})

    def do_batch(self, inputs: Mapping[str, Column], values: Mapping[str, Column]) -> Setting:
        """`do` of many inputs, each with its own values, in columns.

        Raises ValueError as `do` does, and for columns that differ in length.
        """
        self._check_known(values)
        if isinstance(inputs, Setting):  # perhaps of a model with other variables
            inputs = Setting({v: inputs[v] for v in self.inputs if v in inputs}, inputs.held)
            self._check_known(inputs.held)
        self._check_known(inputs)
        if computed := [v for v in inputs if v in self.mechanisms]:
            raise ValueError(
                f"{self.name}: {computed} are computed, not given; hold their values with `do`."
            )
        # Values that the inputs already hold stay, unless they are given anew.
        held = {**getattr(inputs, "held", {}), **values}
        for variable, column in held.items():
            held[variable] = _column(column)
        lengths = {name: len(column) for name, column in {**inputs, **held}.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: the columns differ in length: {lengths}.")
        columns: dict[str, list[Any]] = {}
        # All inputs come first in this order, so they are checked before any mechanism runs.
        for variable in self.order:
            if variable in held:
                columns[variable] = held[variable]
            elif variable in self.mechanisms:
                columns[variable] = self._computed(
                    variable, [columns[p] for p in self._parents[variable]]
                )
            elif variable in inputs:
                columns[variable] = _column(inputs[variable])
            else:
                raise ValueError(
                    f"{self.name}: input {variable!r} is missing; the inputs are "
                    f"{list(self.inputs)}."
                )
            self._check_inside(variable, columns[variable])
        return Setting(columns, held)

    def interchange_batch(
        self, base: Mapping[str, Column], sources: Mapping[str, Mapping[str, Column]]
    ) -> Setting:
        """`interchange` of many pairs, in columns."""
        self._check_known(sources)
        return self.do_batch(base, {v: self.run_batch(source)[v] for v, source in sources.items()})

    def all_inputs(self, *, most: int = 1_000_000) -> dict[str, list[Any]]:
        """Every combination of the inputs' values, in columns. The last input changes fastest.

        Raises ValueError where an input has no domain, and for more than `most` combinations.
        """
        domains: dict[str, Any] = dict(self.inputs)
        open_ended = [name for name, domain in domains.items() if domain is None]
        if open_ended:
            raise ValueError(
                f"{self.name}: the inputs {open_ended} have no domain, so they cannot "
                "be enumerated."
            )
        n = prod(map(len, domains.values()))
        if n > most:
            raise ValueError(f"{self.name} has {n:,} inputs, more than most={most:,}.")
        rows = list(product(*domains.values()))
        return {name: list(map(itemgetter(i), rows)) for i, name in enumerate(domains)}

    def _computed(self, variable: str, parents: list[list[Any]]) -> list[Any]:
        mechanism = self.mechanisms[variable]
        column = list(map(mechanism, *parents))
        for value, *arguments in islice(zip(column, *parents, strict=True), ASKED_TWICE):
            again = mechanism(*arguments)
            if not same(value, again):
                shown = ", ".join(map("{}={!r}".format, self._parents[variable], arguments))
                raise ValueError(
                    f"{self.name}: the mechanism of {variable!r} is not deterministic: at {shown} "
                    f"it gives {value!r}, then {again!r}. What is random belongs into an input."
                )
        return column

    def check_value(self, variable: str, value: Any) -> None:
        """Raises ValueError for a value outside the variable's domain."""
        self._check_inside(variable, [value])

    def _check_inside(self, variable: str, column: list[Any]) -> None:
        if variable not in self._members:
            return
        for value in column:
            if not _inside(value, self._members[variable]):
                domain = self.domains[variable] or ()
                shown = ", ".join(map(repr, domain[:6]))
                if len(domain) > 6:
                    shown += ", …"
                raise ValueError(
                    f"{self.name}: {variable}={value!r} is outside its domain ({shown})."
                )

    def _unknown(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._parents]

    def _check_known(self, names: Iterable[str]) -> None:
        unknown = self._unknown(names)
        if unknown:
            raise ValueError(
                f"{self.name} has no variable {unknown}; the variables are {list(self.variables)}."
            )

    def __repr__(self) -> str:
        lines = "\n  ".join(
            f"{v} ← {', '.join(self._parents[v])}" for v in filter(self.mechanisms.get, self.order)
        )
        return (
            f"CausalModel {self.name}\n  inputs: {', '.join(self.inputs)}\n  {lines}\n  "
            f"output: {self.output}"
        )


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal.

    Arrays and tensors are equal where all entries are, collections where all members are. NaN is
    equal to NaN.
    """
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if hasattr(one, "__array__") and hasattr(other, "__array__"):
        one, other = np.asarray(one), np.asarray(other)
        # Only NaN differs from itself.
        return one.shape == other.shape and bool(
            ((one == other) | ((one != one) & (other != other))).all()
        )
    if one is other or bool(np.all(one == other)):
        return True
    return bool(one != one and other != other)


def _one_row(values: Mapping[str, Any]) -> Mapping[str, list[Any]]:
    columns = {name: [value] for name, value in values.items()}
    if isinstance(values, Setting):
        return Setting(columns, _one_row(values.held))
    return columns


def _first_row(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {name: column[0] for name, column in columns.items()}


def _column(values: Column) -> list[Any]:
    """The column as a list. An array gives Python's own numbers, which a range finds at once."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.tolist()
    return list(values)


def _listed(domains: Mapping[str, Sequence[Any] | None]) -> dict[str, Sequence[Any] | None]:
    listed = dict(domains)
    for variable, domain in domains.items():
        if domain is not None and not isinstance(domain, range):
            listed[variable] = tuple(domain)
    return listed


def _members(domain: Sequence[Any]) -> Sequence[Any] | frozenset[Any]:
    """The domain in the form that tells membership fastest."""
    if isinstance(domain, range):
        return domain
    try:
        return frozenset(domain)
    except TypeError:
        return domain


def _inside(value: Any, members: Sequence[Any] | frozenset[Any]) -> bool:
    # A domain whose values cannot be hashed stays a tuple (see `_members`).
    if isinstance(members, tuple):
        return any(same(value, member) for member in members)
    try:
        return value in members
    except (TypeError, ValueError):
        return False


def _parents(name: str, variable: str, mechanism: Mechanism) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(mechanism).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: the mechanism of {variable!r} tells no parents: {error}. Write a "
            "function or a lambda."
        ) from error
    for p in parameters.values():
        if p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty:
            raise ValueError(
                f"{name}: the mechanism of {variable!r} has the argument {str(p)!r}; each argument "
                "must be the plain name of a parent."
            )
    if not parameters:
        raise ValueError(
            f"{name}: the mechanism of {variable!r} reads nothing; a variable without "
            "parents is an input."
        )
    return tuple(parameters)
