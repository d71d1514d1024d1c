"""How much evidence is gathered beside an alignment, and which figures suffice to believe it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from iit.alignment import Alignment, initialise
from iit.data import Pairs

Refit = Callable[[Mapping[str, Alignment], Pairs, int], Any]
"""Trains alignments side by side: (name → alignment, pairs, seed)."""


class NotApplicableError(ValueError):
    """A control or a figure does not apply to an alignment and its pairs; the message says why."""


def _thresholds() -> dict[str, tuple[float, float]]:
    """The thresholds of `conf/trust/quick.yaml`, where they stand for runs, too."""
    # `iit.conf` itself is not imported: it imports Hydra.
    config: Any = OmegaConf.load(Path(__file__).parents[1] / "conf/trust/quick.yaml")
    entries = config.thresholds
    return {str(criterion): (float(good), float(bad)) for criterion, (good, bad) in entries.items()}


THRESHOLDS: Mapping[str, tuple[float, float]] = _thresholds()
"""Criterion → (bound of passing, bound of failing).

A criterion passes where the whole interval is on the good side of the first number. It fails where
the whole interval is on the bad side of the second one. The larger number comes first where high
figures are good. `iit.evaluation.verdict` says what each criterion compares.
"""


def higher_is_better(criterion: str) -> bool:
    """Whether a criterion passes with high figures: then its larger threshold comes first."""
    good, bad = THRESHOLDS[criterion]
    return good > bad


def thresholds_with(given: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """`THRESHOLDS`, with the given ones in place of the defaults.

    Raises:
        ValueError: for unknown criteria, for what is no pair of numbers, and for a pair in the
            wrong order.
    """
    unknown = sorted(set(given) - set(THRESHOLDS))
    if unknown:
        raise ValueError(f"thresholds: {unknown} are no criteria; they are {sorted(THRESHOLDS)}.")
    thresholds = dict(THRESHOLDS)
    for name, pair in given.items():
        try:
            good, bad = map(float, pair)
        except (TypeError, ValueError):
            # NaN fails both comparisons below, so both faults have one error.
            good, bad = float("nan"), float("nan")
        # Which of the two numbers has to be larger follows from the defaults.
        better, is_ordered = "lower", good <= bad
        if higher_is_better(name):
            better, is_ordered = "higher", good >= bad
        if not is_ordered:
            raise ValueError(
                f"thresholds: {name} takes [bound of passing, bound of failing], the {better} "
                f"first, as {better} figures are better; got {pair}."
            )
        thresholds[name] = (good, bad)
    return thresholds


def train_alike(
    alignments: Mapping[str, Alignment], pairs: Pairs, seed: int, **options: Any
) -> None:
    """Fit alignments side by side.

    Alignments with nothing to train are set by the activations of the training bases (see
    `initialise`).
    """
    trainable = {}
    for name, alignment in alignments.items():
        if any(p.requires_grad for p in alignment.parameters()):
            trainable[name] = alignment
        else:
            # Nothing trains it, but principal components have to be fitted.
            initialise(alignment, pairs)
    if trainable:
        # This imports Lightning, which evaluation without these controls does not need.
        from iit.alignment import fit

        fit(trainable, pairs, seed=seed, **options)


@dataclass(frozen=True)
class Trust:
    """How much evidence is gathered beside an alignment, and what figures are good enough.

    random_subspaces: draws of a random subspace of equal rank.
    resamples: of the bootstrap behind every interval.
    full: also run what has to be trained again: labels shuffled, an untrained network, a wrong
        site, other seeds, lower ranks. Run the other variables' pairs, too, and the diagnostics of
        illusion and divergence. In small networks run the abstraction error.
    seeds: with `full`, how many trainings are compared, the alignment's own among them.
    wrong_site: with `full`, what is different at the wrong site, {"position": 0} or {"module": …};
        by default the first tokens of the prompt. It is left out where it sees a token that the
        variable depends on.
    interventions: with `full`, how many the abstraction error draws in each direction.
    thresholds: criterion → (bound of passing, bound of failing), in place of those of
        `THRESHOLDS`.

    Raises:
        ValueError: for thresholds that `thresholds_with` refuses, for fewer than two seeds with
            `full`, and for no interventions.
    """

    random_subspaces: int = 5
    resamples: int = 2000
    full: bool = False
    seeds: int = 3
    wrong_site: Mapping[str, Any] | None = None
    interventions: int = 1000
    thresholds: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        thresholds_with(self.thresholds)
        if self.interventions < 1:
            raise ValueError(
                f"trust.interventions={self.interventions}: the abstraction error "
                "needs at least one."
            )
        if self.full and self.seeds < 2:
            raise ValueError(
                f"trust.seeds={self.seeds}: seeds are compared with each other; 2 or "
                "more are needed."
            )


# The names that `evaluate` takes for a trust.
TRUST = {"quick": Trust(), "full": Trust(full=True)}


def trust_named(trust: str | Trust) -> Trust:
    """The trust of that name, or the given one.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(trust, Trust):
        return trust
    if trust not in TRUST:
        raise ValueError(f"trust={trust!r} is none of {sorted(TRUST)}.")
    return TRUST[trust]
