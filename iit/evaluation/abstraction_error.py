"""The causal abstraction error: how often network and causal model part ways under the same
interventions, drawn from either side.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment
from iit.causal import Task
from iit.data import EncodedPairs, Pairs, Prompts
from iit.data.pairing import Paired
from iit.data.prompts import answers
from iit.data.table import columns_of, dataset
from iit.evaluation.outcomes import evaluating
from iit.evaluation.value_map import ValueMap, coordinates
from iit.intervened import IntervenedModel, capture
from iit.intervened.sources import Variable
from iit.intervention.operation import Swap
from iit.result import correct
from iit.site import Site

DIRECTIONS = ("up", "down")
SMALL = 10_000_000
"""Parameters of the largest network in which it is asked for."""
MOST_VALUES = 64
"""Values of a variable, of which coordinates are told apart."""


class NotApplicableError(ValueError):
    """There is no abstraction error of this alignment; the message says why."""


class Compared(NamedTuple):
    """Comparisons of one direction, m of them.

    wrong: bool[m], do network and causal model differ? variable: int[m], the number of the variable
        of the alignment whose values were compared, −1 for the output. base: int[m], the number of
        the input that was edited. n: interventions.
    """

    wrong: np.ndarray
    variable: np.ndarray
    base: np.ndarray
    n: int

    @property
    def error(self) -> float:
        """The share that differs, as the mean over variables."""
        return float(
            np.mean(
                [self.wrong[self.variable == number].mean() for number in np.unique(self.variable)]
            )
        )


class _Natural(NamedTuple):
    """Inputs as the task draws them, and of each its values by the causal model and its coordinates
    in the network.
    """

    prompts: Prompts
    values: Mapping[str, list[Any]]
    coordinates: Mapping[Variable, Tensor]


class _Drawn(NamedTuple):
    """n interventions. base, third: int[n], numbers of inputs, never the same. held: {variable:
    bool[n]}. inert: bool[n].
    source: {variable: int[n]}, the input whose coordinates it gets. value: {variable: what the
        causal model holds it at}."""

    base: np.ndarray
    third: np.ndarray
    held: dict[Variable, np.ndarray]
    inert: np.ndarray
    source: dict[Variable, np.ndarray]
    value: dict[Variable, list[Any]]


def abstraction_error(
    alignment: Alignment,
    pairs: Pairs,
    *,
    split: str = "test",
    n: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Compared]:
    """{"up": …, "down": …}: causal model H against network N under n interventions drawn from
    either side (arXiv 2607.00267).

    H abstracts N where H under do(x), and N under do(z) on the same input, its result read as
    values by τ (`ValueMap`), say the same. An intervention holds a random non-empty part of the
    alignment's variables and, where it declares any, its inert parts (all at once; how many are
    held is uniform, and so is which), beside a random input.

    - down, from the causal model: a held variable is x, uniform over its values; in N it gets the
      coordinates z of an input that has the value x by H.
    - up, from the network: a held variable gets the coordinates z of an input, uniform over the
      values that τ reads; in H it is τ(z).

    Held inert parts are what they are in a third input: in H that changes nothing. Compared are the
    variables of the alignment that are not held (their value in H with τ of their coordinates in
    the edited run) and the output; the error is the mean over these of the share that differs.

    Inputs are drawn as the task draws them, from the split's words, answered rightly or not. τ is
    fitted on as many of the training split's.

    Raises NotApplicableError (a ValueError) for pairs without a causal model, networks of more than
    10 million parameters, edits that swap no coordinates, variables of one value or of more than
    64, and prompts of which some have fewer positions at a site than others.
    """
    task = _checked(alignment, pairs)
    with evaluating(alignment):
        fitted, natural = (
            _natural(alignment, pairs, part, n, seed, batch_size) for part in ("train", split)
        )
        maps = {
            v: ValueMap(fitted.coordinates[v], fitted.values[str(v)]) for v in alignment.variables
        }
        read = {
            v: [to.values[i] for i in to(natural.coordinates[v]).tolist()] for v, to in maps.items()
        }
        of = {"up": read, "down": {v: natural.values[str(v)] for v in alignment.variables}}
        drawn = {
            d: _draw(alignment, of[d], n, np.random.default_rng([seed, k]))
            for k, d in enumerate(DIRECTIONS)
        }
        return {
            d: _compared(alignment, task, natural.prompts, maps, drawn[d], batch_size)
            for d in DIRECTIONS
        }


def _checked(alignment: Alignment, pairs: Pairs) -> Task:
    if pairs.task is None or pairs.prompts is None:
        raise NotApplicableError("the pairs have no causal model to intervene on")
    size = sum(parameter.numel() for parameter in alignment.network.parameters())
    if size > SMALL:
        raise NotApplicableError(f"the network has {size:,} parameters, more than {SMALL:,}")
    for edit in alignment.edits.values():
        if (
            not isinstance(edit.intervention.operation, Swap)
            or edit.intervention.learned_rank() == 0
        ):
            raise NotApplicableError(
                f"{edit.intervention} swaps no coordinates that could be read as a value"
            )
    strange = [str(v) for v in alignment.variables if v not in pairs.task.model.variables]
    if strange:
        raise NotApplicableError(
            f"the causal model {pairs.task.model.name} has no variable {strange}"
        )
    return pairs.task


def _natural(
    alignment: Alignment, pairs: Pairs, split: str, n: int, seed: int, batch_size: int
) -> _Natural:
    assert pairs.task is not None
    assert pairs.prompts is not None
    prompts = pairs.prompts(split, n, seed)
    settings = pairs.task.model.run_batch(prompts.inputs)
    values = {str(v): settings[str(v)] for v in alignment.variables}
    for variable, column in values.items():
        n_values = _distinct(column)
        if not 1 < n_values <= MOST_VALUES:
            raise NotApplicableError(
                f"{variable} has {n_values or 'uncountable'} values, not 2 to {MOST_VALUES}, "
                "among the inputs"
            )
    none = Paired(prompts, {}, {}, prompts.answers, {})
    assert alignment.studied is not None
    encoded = EncodedPairs(dataset(columns_of(none, split)), (), alignment.studied)
    read = _sites(edit.source_sites for edit in alignment.edits.values())
    inert = _sites(edit.source_sites for edit in alignment.inert.values())
    found: dict[Variable, list[Tensor]] = {v: [] for v in alignment.variables}
    lengths: dict[Site, set[int]] = {site: set() for site in (*read, *inert)}
    for rows in torch.arange(len(encoded)).split(batch_size):
        seen = capture(alignment.studied, encoded.batch(rows.tolist())["base"], list(lengths))
        for site, counts in seen.counts.items():
            lengths[site] |= set() if counts is None else set(counts.tolist())
        ragged = [str(site) for site, known in lengths.items() if len(known) > 1]
        if ragged:
            raise NotApplicableError(
                f"prompts differ in how many positions they have at {ragged[0]}"
            )
        for variable, here in coordinates(alignment, seen, source=True).items():
            found[variable].append(here)
    return _Natural(prompts, values, {v: torch.cat(here) for v, here in found.items()})


def _sites(groups: Iterable[Sequence[Site]]) -> list[Site]:
    return list(dict.fromkeys(site for sites in groups for site in sites))


def _distinct(column: Sequence[Any]) -> int:
    """How many different values there are; 0 where that cannot be told."""
    try:
        return len(set(column))
    except TypeError:  # values that cannot be hashed
        return 0


def _draw(
    alignment: Alignment, values: Mapping[Variable, list[Any]], n: int, rng: np.random.Generator
) -> _Drawn:
    """values: variable → the value that each natural input stands for; sources are drawn uniformly
    over values, then over inputs.
    """
    n_inputs = len(next(iter(values.values())))
    n_targets = len(alignment.variables) + bool(alignment.inert)
    size = rng.integers(1, n_targets + 1, size=n)
    held = rng.permuted(np.arange(n_targets)[None].repeat(n, 0) < size[:, None], axis=1)
    source, value = {}, {}
    for variable, column in values.items():
        rows: dict[Any, list[int]] = {}
        for row, known in enumerate(column):
            rows.setdefault(known, []).append(row)
        cells = sorted(rows, key=str)
        chosen = [cells[i] for i in rng.integers(len(cells), size=n)]
        source[variable] = np.array(
            [rows[x][int(u * len(rows[x]))] for x, u in zip(chosen, rng.random(n), strict=True)]
        )
        value[variable] = chosen
    inert = held[:, -1] if alignment.inert else np.zeros(n, dtype=bool)
    base = rng.integers(n_inputs, size=n)
    third = (base + rng.integers(1, n_inputs, size=n)) % n_inputs
    return _Drawn(
        base,
        third,
        {v: held[:, k] for k, v in enumerate(alignment.variables)},
        inert,
        source,
        value,
    )


def _compared(
    alignment: Alignment,
    task: Task,
    prompts: Prompts,
    maps: Mapping[Variable, ValueMap],
    drawn: _Drawn,
    batch_size: int,
) -> Compared:
    n, settings = len(drawn.base), _settings(task, prompts, drawn)
    encoded = _encoded(alignment, task, prompts, drawn, settings)
    perturbed = IntervenedModel(
        alignment.studied or alignment.network, {**alignment.edits, **alignment.inert}
    ).eval()
    sites = _sites(edit.sites for edit in alignment.edits.values())
    free = {v: ~held for v, held in drawn.held.items()}
    wrong = {number: np.zeros(n, dtype=bool) for number in (*range(len(free)), -1)}
    for batch in encoded.batches(batch_size):
        rows = batch["row"].numpy()
        base, sources, active = batch["base"], batch["sources"], batch["active"]
        wrong[-1][rows] = ~correct(
            perturbed.answer_logits(base, sources, active).cpu(), base["answer"]
        ).numpy()
        if not any(chosen[rows].any() for chosen in free.values()):
            continue
        seen = capture(perturbed, base, sites, sources=sources, active=active)
        for number, (variable, here) in enumerate(coordinates(alignment, seen).items()):
            told = maps[variable]
            expected = [settings[row][str(variable)] for row in rows]
            wrong[number][rows] = [
                told.values[i] != x for i, x in zip(told(here).tolist(), expected, strict=True)
            ]
    counted = dict(enumerate(free.values())) | {-1: np.ones(n, dtype=bool)}
    return Compared(
        np.concatenate([wrong[number][chosen] for number, chosen in counted.items()]),
        np.concatenate([np.full(int(chosen.sum()), number) for number, chosen in counted.items()]),
        np.concatenate([drawn.base[chosen] for chosen in counted.values()]),
        n,
    )


def _settings(task: Task, prompts: Prompts, drawn: _Drawn) -> list[Mapping[str, Any]]:
    """The causal model's setting of each intervention."""
    settings = []
    for number, row in enumerate(drawn.base.tolist()):
        values = {str(v): drawn.value[v][number] for v, held in drawn.held.items() if held[number]}
        settings.append(
            task.model.do({name: column[row] for name, column in prompts.inputs.items()}, values)
        )
    return settings


def _encoded(
    alignment: Alignment,
    task: Task,
    prompts: Prompts,
    drawn: _Drawn,
    settings: Sequence[Mapping[str, Any]],
) -> EncodedPairs:
    """The interventions as pairs whose label is the causal model's answer; inert parts are further
    variables.
    """
    assert alignment.studied is not None
    columns = {name: [setting[name] for setting in settings] for name in settings[0]}
    of = {str(v): (drawn.source[v], drawn.held[v]) for v in drawn.held} | dict.fromkeys(
        alignment.inert, (drawn.third, drawn.inert)
    )
    sources = {
        name: [
            prompts.written[row] if held else None for row, held in zip(rows, active, strict=True)
        ]
        for name, (rows, active) in of.items()
    }
    made = Paired(
        prompts.take(drawn.base), sources, {name: [None] * len(settings) for name in of}, [], {}
    )
    made.labels = answers(task, columns, task.model.output)
    return EncodedPairs(dataset(columns_of(made, "test")), tuple(of), alignment.studied)
