"""Pointer-value retrieval (arXiv 2107.12580; aligned in 2112.00826) on grids of handwritten digits.

The digit at the top left says which of the other three digits is the answer.

The hypothesis: the network reads the pointer and the three labels, and then looks up the one that
is pointed at.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from iit.causal import Columns, Inputs, Pools, Task
from iit.causal.model import Mechanism
from iit.tasks.data_file import lines
from iit.tasks.drawing import Rng, entries
from iit.tasks.hypotheses import hypotheses

CELLS = ("top_right", "bottom_left", "bottom_right")
IMAGES = ("top_left_image", "top_right_image", "bottom_left_image", "bottom_right_image")
POINTS_TO = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
"""Digit at the top left → number of the cell."""
MIRRORED = (0, 0, 0, 0, 2, 2, 2, 1, 1, 1)


@cache
def digits() -> tuple[np.ndarray, tuple[int, ...]]:
    """1,797 handwritten digits: float32[n, 8, 8] from 0 to 1, and their labels."""
    rows = np.loadtxt(lines("digits.csv"), dtype=int, delimiter=",", skiprows=1)
    labels = rows[:, 0]
    pixels = rows[:, 1:].reshape(-1, 8, 8)
    images = (pixels / 16).astype(np.float32)
    return images, tuple(labels.tolist())


def pvr() -> Task:
    """Pointer-value retrieval. `pointer`: which cell the top left digit points to; `top_right`,
    `bottom_left`, `bottom_right`: their digits.

    A top left digit of 0–3 points to the top right (0), 4–6 to the bottom left (1), 7–9 to the
    bottom right (2). The answer is the digit there, classes 0 to 9. An input is the number of an
    image.

    Rivals: `value` (the digit that is pointed at is passed on, not the place) has the hypothesis'
    behaviour; `top_right_only` (the pointer is always 0) and `mirrored` (4–6 and 7–9 exchanged)
    have not.

    Splits share no image.
    """
    _, labels = digits()
    inputs: dict[str, range] = dict.fromkeys(IMAGES, range(len(labels)))

    def looks_up(pointer: Callable[[int], int]) -> dict[str, Mechanism]:
        return {
            "pointer": lambda top_left_image: pointer(labels[top_left_image]),
            "top_right": lambda top_right_image: labels[top_right_image],
            "bottom_left": lambda bottom_left_image: labels[bottom_left_image],
            "bottom_right": lambda bottom_right_image: labels[bottom_right_image],
            "answer": lambda pointer, top_right, bottom_left, bottom_right: (
                top_right,
                bottom_left,
                bottom_right,
            )[pointer],
        }

    def pointed_at(top_left_image, top_right_image, bottom_left_image, bottom_right_image):
        others = (top_right_image, bottom_left_image, bottom_right_image)
        return labels[others[POINTS_TO[labels[top_left_image]]]]

    rivals = {
        "value": {"pointer": pointed_at, "answer": lambda pointer: pointer},
        "top_right_only": looks_up(lambda digit: 0),
        "mirrored": looks_up(MIRRORED.__getitem__),
    }
    return Task(
        **hypotheses("pvr", inputs, looks_up(POINTS_TO.__getitem__), rivals),
        variables=("pointer", *CELLS),
        pools={"image": tuple(range(len(labels)))},
        draw=draw,
        write=write,
        answer=lambda setting: setting["answer"],
        uses=lambda row: {"image": [row[name] for name in IMAGES]},
        splits=("image",),
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Four images each; every cell is pointed to in a third of the rows.

    Raises ValueError for an empty pool, and for one without a digit that points to one of the
    cells.
    """
    images = np.array(entries(pools, "image"))
    columns = {}
    for name in IMAGES[1:]:
        index = rng.integers(len(images), size=n)
        columns[name] = images[index].tolist()

    _, labels = digits()
    cells = np.array(POINTS_TO)[np.array(labels)[images]]
    pointing = [images[cells == cell] for cell in range(len(CELLS))]
    sizes = np.array([len(group) for group in pointing])
    if not sizes.all():
        raise ValueError(
            f"The pool 'image' holds {len(images)} images, none of a digit that points to "
            f"{CELLS[int(sizes.argmin())]!r}. Give it more entries."
        )

    # The groups of images lie one after the other: `start` is where a row's group begins.
    cell = rng.integers(len(CELLS), size=n)
    start = (sizes.cumsum() - sizes)[cell]
    index = start + (rng.random(n) * sizes[cell]).astype(int)
    top_left = np.concatenate(pointing)[index]
    return {"top_left_image": top_left.tolist(), **columns}


def write(inputs: Inputs) -> np.ndarray:
    """float32[1, 16, 16], from 0 to 1: the four images in their cells."""
    images, _ = digits()
    top_left, top_right, bottom_left, bottom_right = images[[inputs[name] for name in IMAGES]]
    return np.block([[[top_left, top_right], [bottom_left, bottom_right]]])
