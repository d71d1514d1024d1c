"""Schedules: numbers that change with the optimizer's steps."""

from dataclasses import dataclass
from math import isfinite

SHAPES = ("linear", "exponential")


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `stop`, and stays there.

    At optimizer step t, with s = min(t/steps, 1), it is

        start + (stop − start) · s       (linear)
        start · (stop/start)^s           (exponential)

    Arguments:
        start, stop: the first and the last value, both finite.
        steps: how many optimizer steps it takes; None for as many as the training has.
        shape: linear | exponential.

    Raises:
        ValueError: for fewer than one step; ends that are not finite; an unknown shape; an
            exponential schedule that starts or stops at or below 0.
    """

    start: int | float
    stop: int | float
    steps: int | None = None
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not (isfinite(self.start) and isfinite(self.stop)):
            raise ValueError(
                f"A schedule goes between finite numbers; got start={self.start}, stop={self.stop}."
            )
        if self.steps is not None and not (isfinite(self.steps) and self.steps >= 1):
            raise ValueError(
                f"A schedule needs at least one step to go from {self.start} to {self.stop}; got "
                f"steps={self.steps}. Leave `steps` out (null) for as many as the training has."
            )
        if self.shape not in SHAPES:
            raise ValueError(f"A schedule's shape={self.shape!r} is none of {list(SHAPES)}.")
        if self.shape == "exponential" and min(self.start, self.stop) <= 0:
            raise ValueError(
                f"An exponential schedule stays above 0; got start={self.start}, stop={self.stop}."
            )

    def at(self, step: int, total: int | float) -> float:
        """The number at an optimizer step, in a training of `total` steps.

        Raises ValueError where it takes as long as a training without end.
        """
        steps = total if self.steps is None else self.steps
        if not isfinite(steps) or steps < 1:
            raise ValueError(
                "A schedule over the whole training needs its length: set max_epochs (or "
                "max_steps), or its `steps`."
            )
        # Behind its last step the number stays where it is.
        share = min(step / steps, 1.0)
        if self.shape == "exponential":
            return self.start * (self.stop / self.start) ** share
        return self.start + (self.stop - self.start) * share


Number = int | float | Schedule
"""A constant, or a number that changes with the steps."""


def ends(number: Number) -> tuple[int | float, int | float]:
    """The first and the last value of a number; all others lie between them."""
    if isinstance(number, Schedule):
        return number.start, number.stop
    return number, number
