"""The causal abstraction error: how often network and causal model differ under interventions.

Both get the same interventions, which are drawn from either side.
"""

from collections.abc import Mapping
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from iit.alignment import Alignment
from iit.causal import Task
from iit.data import EncodedPairs, Pairs, Prompts
from iit.data.prompts import answers
from iit.data.table import columns_of, dataset, source_columns
from iit.evaluation.outcomes import evaluating
from iit.evaluation.scoring import encoded_prompts
from iit.evaluation.trust import NotApplicableError
from iit.evaluation.value_map import ValueMap, coordinates
from iit.intervened import IntervenedModel, capture
from iit.intervened.edit import sites_of
from iit.intervention.operation import Swap
from iit.patching.activations import activations
from iit.result import correct

SMALL = 10_000_000
"""Parameters of the largest network in which the error is computed."""
MOST_VALUES = 64
"""The most values of a variable that coordinates are mapped to."""

Values = dict[str, list[Any]]
"""{variable: its value in each input or intervention}"""


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
        numbers = np.unique(self.variable)
        shares = [self.wrong[self.variable == number].mean() for number in numbers]
        return float(np.mean(shares))


class _Natural(NamedTuple):
    """Inputs as the task draws them.

    values: {variable: its value in each input, by the causal model}.
    coordinates: {variable: Tensor[n, k], the coordinates that its edit swaps, in the network}.
    """

    prompts: Prompts
    values: Values
    coordinates: dict[str, Tensor]


class _Drawn(NamedTuple):
    """n interventions on variables and inert parts, which are targets.

    base: int[n], numbers of inputs.
    held: {target: bool[n]}, does the intervention hold it?
    source: {target: int[n]}, the input from which the target is taken in the network. That of an
        inert part is never the base.
    value: {variable: what the causal model holds it at}.
    """

    base: np.ndarray
    held: dict[str, np.ndarray]
    source: dict[str, np.ndarray]
    value: Values


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
        fitted = _natural(alignment, pairs, "train", n, seed)
        natural = _natural(alignment, pairs, split, n, seed)
        maps = {}
        # {variable: the value that τ reads in each natural input}
        read_values = {}
        for variable, values in fitted.values.items():
            maps[variable] = ValueMap(fitted.coordinates[variable], values)
            read_values[variable] = maps[variable](natural.coordinates[variable])
        compared = {}
        # The two directions differ in the values that their sources stand for, and in nothing else.
        for number, values in enumerate((read_values, natural.values)):
            # A generator for each direction, so neither depends on what the other draws.
            drawn = _draw(alignment, values, n, np.random.default_rng([seed, number]))
            direction = ("up", "down")[number]
            compared[direction] = _compared(
                alignment, task, natural.prompts, maps, drawn, batch_size
            )
    return compared


def _checked(alignment: Alignment, pairs: Pairs) -> Task:
    if pairs.task is None or pairs.sampler is None:
        raise NotApplicableError("the pairs have no causal model to intervene on")
    size = sum(parameter.numel() for parameter in alignment.network.parameters())
    if size > SMALL:
        raise NotApplicableError(f"the network has {size:,} parameters, more than {SMALL:,}")
    for edit in alignment.edits.values():
        intervention = edit.intervention
        if not isinstance(intervention.operation, Swap) or intervention.learned_rank() == 0:
            raise NotApplicableError(
                f"{intervention} swaps no coordinates that could be read as a value"
            )
    strange = [str(v) for v in alignment.variables if v not in pairs.task.model.variables]
    if strange:
        raise NotApplicableError(
            f"the causal model {pairs.task.model.name} has no variable {strange}"
        )
    return pairs.task


def _natural(alignment: Alignment, pairs: Pairs, split: str, n: int, seed: int) -> _Natural:
    sampler, network = pairs.sampler, alignment.studied
    assert sampler is not None
    assert network is not None
    prompts = sampler.prompts(split, n, seed)
    settings = sampler.task.model.run_batch(prompts.inputs)
    values = {str(v): settings[str(v)] for v in alignment.variables}
    for variable, column in values.items():
        try:
            n_values = len(set(column))
        except TypeError:  # values that cannot be hashed
            n_values = 0
        if not 1 < n_values <= MOST_VALUES:
            raise NotApplicableError(
                f"{variable} has {n_values or 'uncountable'} values, not 2 to {MOST_VALUES}, "
                "among the inputs"
            )
    base = encoded_prompts(prompts, network).batch(range(len(prompts)))["base"]
    sites = []
    for edit in (*alignment.edits.values(), *alignment.inert.values()):
        sites += edit.source_sites
    captured = activations(network, base, sites)
    for site, counts in captured.counts.items():
        # Coordinates of all positions make one vector, so inputs need the same number of them.
        # None: no count is known, and nothing counts as padding.
        if counts is not None and len(counts.unique()) > 1:
            raise NotApplicableError(f"prompts differ in how many positions they have at {site}")
    return _Natural(prompts, values, coordinates(alignment, captured, source=True))


def _draw(alignment: Alignment, values: Values, n: int, rng: np.random.Generator) -> _Drawn:
    """Draw n interventions. Sources are uniform over values, then over inputs of that value.

    values: variable → the value that each natural input stands for.
    """
    n_inputs = len(next(iter(values.values())))
    # Held are the variables, and behind them the inert parts as one.
    n_targets = len(values) + bool(alignment.inert)
    size = rng.integers(1, n_targets + 1, size=n)
    # bool[n, target]: `size` of them in each row, in random places.
    is_leading = np.arange(n_targets)[None].repeat(n, 0) < size[:, None]
    is_held = rng.permuted(is_leading, axis=1)
    held = dict(zip(values, is_held.T, strict=False))
    source, value = {}, {}
    for variable, column in values.items():
        rows: dict[Any, list[int]] = {}
        for row, natural_value in enumerate(column):
            rows.setdefault(natural_value, []).append(row)
        distinct = sorted(rows, key=str)
        value[variable] = [distinct[i] for i in rng.integers(len(distinct), size=n)]
        # A random input among those that have the chosen value.
        chosen = []
        for chosen_value, share in zip(value[variable], rng.random(n), strict=True):
            candidates = rows[chosen_value]
            chosen.append(candidates[int(share * len(candidates))])
        source[variable] = np.array(chosen)
    base = rng.integers(n_inputs, size=n)
    # A shift by 1 to n_inputs − 1, so the third input is never the base.
    third = (base + rng.integers(1, n_inputs, size=n)) % n_inputs
    for part in alignment.inert:
        held[part], source[part] = is_held[:, -1], third
    return _Drawn(base, held, source, value)


def _compared(
    alignment: Alignment,
    task: Task,
    prompts: Prompts,
    maps: Mapping[str, ValueMap],
    drawn: _Drawn,
    batch_size: int,
) -> Compared:
    n, network = len(drawn.base), alignment.studied
    assert network is not None
    # The causal model's settings under the interventions, {variable: its values}.
    settings: Values = {}
    for number, row in enumerate(drawn.base.tolist()):
        inputs = {name: column[row] for name, column in prompts.inputs.items()}
        values = {}
        for variable, drawn_values in drawn.value.items():
            if drawn.held[variable][number]:
                values[variable] = drawn_values[number]
        for name, value in task.model.do(inputs, values).items():
            settings.setdefault(name, []).append(value)
    # The interventions are pairs, whose label is the causal model's answer.
    targets = tuple(drawn.source)
    labels = answers(task, settings)
    columns = columns_of("test", prompts.take(drawn.base), labels)
    if len(targets) > 1:
        # bool[n, target]
        is_held = np.stack([drawn.held[target] for target in targets], 1)
        columns["interchanged"] = [list(compress(targets, row)) for row in is_held]
    for target, rows in drawn.source.items():
        # An intervention that does not hold the target has no source for it.
        written = [None] * n
        source_answers = written.copy()
        for number in np.flatnonzero(drawn.held[target]):
            written[number] = prompts.written[rows[number]]
            source_answers[number] = prompts.answers[rows[number]]
        columns |= source_columns(target, targets, written, source_answers)
    encoded = EncodedPairs(dataset(columns), targets, network)

    perturbed = IntervenedModel(network, {**alignment.edits, **alignment.inert}).eval()
    sites = sites_of(alignment.edits.values())
    # bool[variable, n]: compared are variables that are not held and, behind them, every output.
    not_held = [~drawn.held[variable] for variable in maps]
    compared = np.stack([*not_held, np.ones(n, dtype=bool)])
    wrong = np.zeros_like(compared)
    for batch in encoded.batches(batch_size):
        rows, base = batch["row"].numpy(), batch["base"]
        logits = perturbed.answer_logits(base, batch["sources"], batch["active"]).cpu()
        wrong[-1, rows] = ~correct(logits, base["answer"]).numpy()
        # Coordinates are not needed where all variables of the batch are held.
        if not compared[:-1, rows].any():
            continue
        captured = capture(perturbed, base, sites, sources=batch["sources"], active=batch["active"])
        read = coordinates(alignment, captured)
        for number, variable in enumerate(maps):
            values = zip(maps[variable](read[variable]), rows, strict=True)
            wrong[number, rows] = [value != settings[variable][row] for value, row in values]
    number, row = np.nonzero(compared)
    number[number == len(maps)] = -1
    return Compared(wrong[compared], number, drawn.base[row], n)
