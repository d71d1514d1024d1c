"""The causal abstraction error: how often network and causal model differ under interventions.

Both get the same interventions, which are drawn from either side.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment
from iit.causal import Task
from iit.data import EncodedPairs, Pairs, Prompts
from iit.data.prompts import answers
from iit.data.table import columns_of, dataset, source_columns
from iit.evaluation.outcomes import evaluating
from iit.evaluation.trust import NotApplicableError
from iit.evaluation.value_map import ValueMap, coordinates
from iit.intervened import IntervenedModel, capture
from iit.intervened.sources import Variable
from iit.intervention.operation import Swap
from iit.result import correct
from iit.site import Site

DIRECTIONS = ("up", "down")
SMALL = 10_000_000
"""Parameters of the largest network in which the error is computed."""
MOST_VALUES = 64
"""The most values of a variable that coordinates are mapped to."""


class Compared(NamedTuple):
    """Comparisons of one direction, m of them.

    wrong: bool[m], do network and causal model differ?
    variable: int[m], the number of the variable of the alignment whose values were compared; −1 for
        the output.
    base: int[m], the number of the input that was edited.
    n: the number of interventions.
    """

    wrong: np.ndarray
    variable: np.ndarray
    base: np.ndarray
    n: int

    @property
    def error(self) -> float:
        """The share of comparisons that differ, as the mean over variables and output."""
        return float(
            np.mean(
                [self.wrong[self.variable == number].mean() for number in np.unique(self.variable)]
            )
        )


class _Natural(NamedTuple):
    """Inputs as the task draws them.

    values: {variable: its value in each input, by the causal model}.
    coordinates: {variable: Tensor[n, k], the coordinates that its edit swaps, in the network}.
    """

    prompts: Prompts
    values: Mapping[str, list[Any]]
    coordinates: Mapping[Variable, Tensor]


class _Drawn(NamedTuple):
    """n interventions.

    base, third: int[n], numbers of inputs; the two are never the same.
    held: {variable: bool[n]}, does the intervention hold the variable?
    inert: bool[n], does it hold the inert parts?
    source: {variable: int[n]}, the input whose coordinates the variable gets.
    value: {variable: what the causal model holds it at}.
    """

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
    """Compare causal model H and network N under n interventions drawn from either side.

    H abstracts N where two results agree: that of H under do(x), and that of N under do(z) on the
    same input, read as values by τ (`ValueMap`). An intervention edits a random input. It holds a
    random non-empty part of the alignment's variables and, where the alignment declares any, its
    inert parts (all of them at once). How many are held is uniform, and so is which ones.

    - down, from the causal model: a held variable is x, uniform over its values. In N it gets the
      coordinates z of an input that has the value x by H.
    - up, from the network: a held variable gets the coordinates z of an input, uniform over the
      values that τ reads. In H it is τ(z).

    Held inert parts are what they are in a third input; in H that changes nothing. Compared are the
    output and the variables of the alignment that are not held. Such a variable's value in H is
    compared with τ of its coordinates in the edited run. The error is the mean over output and
    variables of the share that differs.

    Inputs are drawn as the task draws them, from the split's words, whether the network answers
    them rightly or not. τ is fitted on as many inputs of the training split.

    Arguments:
        n: interventions of each direction, and inputs that are drawn.

    Returns:
        {"up": …, "down": …}.

    Raises:
        NotApplicableError: a ValueError; for pairs without a causal model; for networks of more
            than 10 million parameters; for edits that swap no coordinates; for variables of the
            alignment that the causal model lacks; for variables of one value or of more than 64;
            and for prompts that differ in how many positions they have at a site.

    References:
        arXiv 2607.00267.
    """
    task = _checked(alignment, pairs)
    with evaluating(alignment):
        # τ is fitted on training inputs. Interventions are on the inputs of the split.
        fitted, natural = (
            _natural(alignment, pairs, part, n, seed, batch_size) for part in ("train", split)
        )
        maps = {
            v: ValueMap(fitted.coordinates[v], fitted.values[str(v)]) for v in alignment.variables
        }
        # {variable: the value that τ reads in each natural input}
        read_values = {
            v: [value_map.values[i] for i in value_map(natural.coordinates[v]).tolist()]
            for v, value_map in maps.items()
        }
        # The two directions differ in the values that their sources stand for, and in nothing else.
        values_of = {
            "up": read_values,
            "down": {v: natural.values[str(v)] for v in alignment.variables},
        }
        drawn = {
            # A generator for each direction, so neither depends on what the other draws.
            d: _draw(alignment, values_of[d], n, np.random.default_rng([seed, k]))
            for k, d in enumerate(DIRECTIONS)
        }
        return {
            d: _compared(alignment, task, natural.prompts, maps, drawn[d], batch_size)
            for d in DIRECTIONS
        }


def _checked(alignment: Alignment, pairs: Pairs) -> Task:
    if pairs.task is None or pairs.sampler is None:
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
    assert pairs.sampler is not None
    prompts = pairs.sampler.prompts(split, n, seed)
    settings = pairs.sampler.task.model.run_batch(prompts.inputs)
    values = {str(v): settings[str(v)] for v in alignment.variables}
    for variable, column in values.items():
        n_values = _distinct(column)
        if not 1 < n_values <= MOST_VALUES:
            raise NotApplicableError(
                f"{variable} has {n_values or 'uncountable'} values, not 2 to {MOST_VALUES}, "
                "among the inputs"
            )
    # The table of pairs takes prompts alone, too: no source and no label are needed here.
    no_sources = dataset(columns_of(split, prompts, prompts.answers))
    assert alignment.studied is not None
    encoded = EncodedPairs(no_sources, (), alignment.studied)
    read_sites = _sites(edit.source_sites for edit in alignment.edits.values())
    inert_sites = _sites(edit.source_sites for edit in alignment.inert.values())
    parts: dict[Variable, list[Tensor]] = {v: [] for v in alignment.variables}
    lengths: dict[Site, set[int]] = {site: set() for site in (*read_sites, *inert_sites)}
    for rows in torch.arange(len(encoded)).split(batch_size):
        activations = capture(
            alignment.studied, encoded.batch(rows.tolist())["base"], list(lengths)
        )
        for site, counts in activations.counts.items():
            # None: no count is known, and nothing counts as padding.
            lengths[site] |= set() if counts is None else set(counts.tolist())
        # Coordinates of all positions make one vector, so inputs need the same number of them.
        ragged = [str(site) for site, numbers in lengths.items() if len(numbers) > 1]
        if ragged:
            raise NotApplicableError(
                f"prompts differ in how many positions they have at {ragged[0]}"
            )
        for variable, tensor in coordinates(alignment, activations, source=True).items():
            parts[variable].append(tensor)
    return _Natural(prompts, values, {v: torch.cat(tensor) for v, tensor in parts.items()})


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
    """Draw n interventions. Sources are uniform over values, then over inputs of that value.

    values: variable → the value that each natural input stands for.
    """
    n_inputs = len(next(iter(values.values())))
    n_targets = len(alignment.variables) + bool(alignment.inert)
    # Targets are the variables, and behind them the inert parts as one.
    size = rng.integers(1, n_targets + 1, size=n)
    # bool[n, target]: `size` of them in each row, in random places.
    held = rng.permuted(np.arange(n_targets)[None].repeat(n, 0) < size[:, None], axis=1)
    source, value = {}, {}
    for variable, column in values.items():
        rows: dict[Any, list[int]] = {}
        for row, natural_value in enumerate(column):
            rows.setdefault(natural_value, []).append(row)
        distinct = sorted(rows, key=str)
        chosen = [distinct[i] for i in rng.integers(len(distinct), size=n)]
        # A random input among those that have the chosen value.
        source[variable] = np.array(
            [rows[x][int(u * len(rows[x]))] for x, u in zip(chosen, rng.random(n), strict=True)]
        )
        value[variable] = chosen
    inert = held[:, -1] if alignment.inert else np.zeros(n, dtype=bool)
    base = rng.integers(n_inputs, size=n)
    # A shift by 1 to n_inputs − 1, so the third input is never the base.
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
    # A variable is compared where it is not held.
    free = {v: ~held for v, held in drawn.held.items()}
    # {number of the variable, −1 for the output: bool[n]}
    wrong = {number: np.zeros(n, dtype=bool) for number in (*range(len(free)), -1)}
    for batch in encoded.batches(batch_size):
        rows = batch["row"].numpy()
        base, sources, active = batch["base"], batch["sources"], batch["active"]
        # The label of these pairs is the causal model's output: −1 stands for it.
        wrong[-1][rows] = ~correct(
            perturbed.answer_logits(base, sources, active).cpu(), base["answer"]
        ).numpy()
        # Activations are not needed where all variables of the batch are held.
        if not any(mask[rows].any() for mask in free.values()):
            continue
        activations = capture(perturbed, base, sites, sources=sources, active=active)
        for number, (variable, tensor) in enumerate(coordinates(alignment, activations).items()):
            value_map = maps[variable]
            expected = [settings[row][str(variable)] for row in rows]
            wrong[number][rows] = [
                value_map.values[i] != x
                for i, x in zip(value_map(tensor).tolist(), expected, strict=True)
            ]
    # Kept are the comparisons that count: free variables, and every output.
    counts = dict(enumerate(free.values())) | {-1: np.ones(n, dtype=bool)}
    return Compared(
        np.concatenate([wrong[number][mask] for number, mask in counts.items()]),
        np.concatenate([np.full(int(mask.sum()), number) for number, mask in counts.items()]),
        np.concatenate([drawn.base[mask] for mask in counts.values()]),
        n,
    )


def _settings(task: Task, prompts: Prompts, drawn: _Drawn) -> list[Mapping[str, Any]]:
    """The setting of the causal model under each intervention."""
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
    """The interventions as pairs whose label is the causal model's answer.

    Inert parts are further variables.
    """
    assert alignment.studied is not None
    columns = {name: [setting[name] for setting in settings] for name in settings[0]}
    # {variable or inert part: (numbers of its source inputs, is it held?)}
    held_rows = {str(v): (drawn.source[v], drawn.held[v]) for v in drawn.held} | dict.fromkeys(
        alignment.inert, (drawn.third, drawn.inert)
    )
    variables = tuple(held_rows)
    table = columns_of("test", prompts.take(drawn.base), answers(task, columns))
    if len(variables) > 1:
        held_by_row = zip(*(active for _, active in held_rows.values()), strict=True)
        table["interchanged"] = [
            [name for name, held in zip(variables, row, strict=True) if held] for row in held_by_row
        ]
    for name, (rows, active) in held_rows.items():
        sources = [
            prompts.written[row] if held else None for row, held in zip(rows, active, strict=True)
        ]
        table |= source_columns(name, variables, sources, [None] * len(settings))
    return EncodedPairs(dataset(table), variables, alignment.studied)
