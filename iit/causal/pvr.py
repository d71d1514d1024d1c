"""Pointer-value retrieval (arXiv 2107.12580; aligned in 2112.00826) on grids of scikit-learn's 8×8
digits.

The digit at the top left says which of the other three digits is the answer.

The hypothesis: the network reads the pointer and the three labels, and then looks up the one that
is pointed at.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, taken
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Task

CELLS = ("top_right", "bottom_left", "bottom_right")
POINTS_TO = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
"""Digit at the top left → number of the cell."""
MIRRORED = (0, 0, 0, 0, 2, 2, 2, 1, 1, 1)


@final
class PointerValue(Task):
    """PVR. `pointer`: which cell the top left digit points to; `top_right`, `bottom_left`,
    `bottom_right`: their digits.

    A top left digit of 0–3 points to the top right (0), 4–6 to the bottom left (1), 7–9 to the
    bottom right (2). The answer is the digit there, classes 0 to 9. The inputs are numbers of
    images; splits share no image.

    Rivals: `value` (what is passed on is the digit that is pointed at, not the place) has the
        hypothesis' behaviour;
    `top_right_only` (the pointer is always 0) and `mirrored` (4–6 and 7–9 exchanged) have not.
    """

    name = "pvr"
    variables = ("pointer", *CELLS)
    splits = ("image",)

    def __init__(self) -> None:
        self.images, self.digits = digits()
        self.pools = {"image": tuple(range(len(self.digits)))}
        inputs = {f"{cell}_image": range(len(self.digits)) for cell in ("top_left", *CELLS)}
        digit = self.digits.__getitem__
        values = {
            "top_right": lambda top_right_image: digit(top_right_image),
            "bottom_left": lambda bottom_left_image: digit(bottom_left_image),
            "bottom_right": lambda bottom_right_image: digit(bottom_right_image),
        }

        def looks_up(name: str, pointer: Callable[[int], int]) -> CausalModel:
            mechanisms = {
                "pointer": lambda top_left_image: pointer(digit(top_left_image)),
                **values,
                "answer": lambda pointer, top_right, bottom_left, bottom_right: (
                    top_right,
                    bottom_left,
                    bottom_right,
                )[pointer],
            }
            return CausalModel(inputs, mechanisms, output="answer", name=name)

        def pointed_at(
            top_left_image: Any,
            top_right_image: Any,
            bottom_left_image: Any,
            bottom_right_image: Any,
        ) -> int:
            others = (top_right_image, bottom_left_image, bottom_right_image)
            return digit(others[POINTS_TO[digit(top_left_image)]])

        self.model = looks_up("pvr", POINTS_TO.__getitem__)
        self.rivals = {
            "value": CausalModel(
                inputs,
                {
                    "pointer": pointed_at,
                    "answer": lambda pointer: pointer,
                },
                output="answer",
                name="value",
            ),
            "top_right_only": looks_up("top_right_only", lambda digit: 0),
            "mirrored": looks_up("mirrored", MIRRORED.__getitem__),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Four images each; every cell is pointed to in a third of the rows.

        Raises ValueError for an empty pool, and for one without a digit that points to one of the
        cells.
        """
        images = np.array(entries(pools, "image"))
        columns = {
            f"{cell}_image": images[rng.integers(len(images), size=n)].tolist() for cell in CELLS
        }
        cells = np.array(POINTS_TO)[np.array(self.digits)[images]]
        pointing = [images[cells == cell] for cell in range(len(CELLS))]
        empty = [cell for cell, found in zip(CELLS, pointing, strict=True) if not len(found)]
        if empty:
            raise ValueError(
                f"The pool 'image' holds {len(images)} images, none of a digit that points to "
                f"{empty[0]!r}. Give it more entries."
            )
        sizes = np.array([len(found) for found in pointing])
        cell = rng.integers(len(CELLS), size=n)
        index = (rng.random(n) * sizes[cell]).astype(int) + (sizes.cumsum() - sizes)[cell]
        return {"top_left_image": taken(np.concatenate(pointing).tolist(), index), **columns}

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return {"image": [inputs[f"{cell}_image"] for cell in ("top_left", *CELLS)]}

    def write(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """float32[1, 16, 16], from 0 to 1: the four images in their cells."""
        grid = np.empty((1, 16, 16), dtype=np.float32)
        grid[0, :8, :8] = self.images[inputs["top_left_image"]]
        grid[0, :8, 8:] = self.images[inputs["top_right_image"]]
        grid[0, 8:, :8] = self.images[inputs["bottom_left_image"]]
        grid[0, 8:, 8:] = self.images[inputs["bottom_right_image"]]
        return grid

    def answer(self, setting: Mapping[str, Any]) -> int:
        """The digit that is pointed at."""
        return setting["answer"]


@cache
def digits() -> tuple[np.ndarray, tuple[int, ...]]:
    """scikit-learn's 1,797 digits: float32[n, 8, 8] from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits  # only this task needs it

    pixels, target = load_digits(return_X_y=True)
    return (pixels.reshape(-1, 8, 8) / 16).astype(np.float32), tuple(target.tolist())


def pvr() -> Task:
    """Pointer-value retrieval."""
    return PointerValue()
