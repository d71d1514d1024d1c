import numpy as np
import pytest

from iit.tasks import pvr
from iit.tasks.pvr import digits as handwritten
from tests.seeds import shifted


@pytest.fixture(scope="module")
def task():
    return pvr()


def inputs(*digits):
    """The first image of each of these digits."""
    _, labels = handwritten()
    images = [labels.index(digit) for digit in digits]
    return dict(
        zip(
            ("top_left_image", "top_right_image", "bottom_left_image", "bottom_right_image"),
            images,
            strict=True,
        )
    )


# digits at the top left, top right, bottom left, bottom right → pointer, answer
TRUTH = [((top_left, 7, 8, 9), (0, 7)) for top_left in (0, 1, 2, 3)]
TRUTH += [((top_left, 7, 8, 9), (1, 8)) for top_left in (4, 5, 6)]
TRUTH += [((top_left, 7, 8, 9), (2, 9)) for top_left in (7, 8, 9)]
TRUTH += [((0, 0, 1, 2), (0, 0)), ((9, 9, 9, 0), (2, 0))]


@pytest.mark.parametrize(("digits", "values"), TRUTH)
def test_truth_table(task, digits, values):
    setting = task.model.run(inputs(*digits))
    assert (setting["pointer"], task.answer(setting)) == values
    assert (setting["top_right"], setting["bottom_left"], setting["bottom_right"]) == digits[1:]


# base, source, variable → label, and what the rivals say
INTERCHANGES = [
    ((0, 1, 2, 3), (5, 6, 7, 8), "pointer", 2, {"value": 7, "top_right_only": 1, "mirrored": 3}),
    ((9, 1, 2, 3), (0, 6, 7, 8), "pointer", 1, {"value": 6, "top_right_only": 1, "mirrored": 1}),
    ((0, 1, 2, 3), (5, 6, 7, 8), "top_right", 6, {"top_right_only": 6}),
    ((5, 1, 2, 3), (5, 6, 7, 8), "top_right", 2, {"top_right_only": 6, "mirrored": 3}),
    ((5, 1, 2, 3), (0, 6, 7, 8), "bottom_left", 7, {"mirrored": 3}),
]


@pytest.mark.parametrize(("base", "source", "variable", "label", "others"), INTERCHANGES)
def test_interchanges(task, base, source, variable, label, others):
    base, sources = inputs(*base), {variable: inputs(*source)}
    assert task.model.interchange(base, sources)["answer"] == label
    for name, said in others.items():
        assert task.rivals[name].interchange(base, sources)["answer"] == said


def test_images_are_written_in_their_cells(task):
    row = dict(zip(task.model.inputs, (3, 4, 5, 6), strict=True))
    grid, (images, _) = task.write(row), handwritten()
    assert grid.shape == (1, 16, 16)
    assert grid.dtype == np.float32
    assert (grid.min(), grid.max()) == (0, 1)
    for name, cell in (
        ("top_left_image", grid[0, :8, :8]),
        ("top_right_image", grid[0, :8, 8:]),
        ("bottom_left_image", grid[0, 8:, :8]),
        ("bottom_right_image", grid[0, 8:, 8:]),
    ):
        assert np.array_equal(cell, images[row[name]])


def test_the_images_are_of_their_digits():
    """Nearest neighbours agree about the labels: images and labels are in the same order."""
    images, labels = handwritten()
    pixels, digits = images.reshape(len(images), -1), np.array(labels)
    distance = ((pixels[:300, None] - pixels[None, 300:900]) ** 2).sum(-1)
    assert (digits[300:900][distance.argmin(1)] == digits[:300]).mean() > 0.8
    assert np.bincount(digits).min() > 150


def test_every_cell_is_pointed_to_as_often(task):
    columns = task.draw(np.random.default_rng(shifted(0)), task.pools, 3000)
    pointers = [
        task.model.run(dict(zip(columns, row, strict=True)))["pointer"]
        for row in zip(*columns.values(), strict=True)
    ]
    assert np.bincount(pointers).min() > 900


def test_draws_keep_to_the_pool(task):
    pool = tuple(range(40, 80))
    columns = task.draw(np.random.default_rng(shifted(0)), {"image": pool}, 500)
    assert all(set(column) <= set(pool) for column in columns.values())
    assert all(len(set(column)) > 20 for column in columns.values())


def test_a_pool_in_which_nothing_points_to_a_cell_is_refused(task):
    zeros = tuple(image for image, digit in enumerate(handwritten()[1]) if digit == 0)
    with pytest.raises(ValueError, match="none of a digit that points to 'bottom_left'"):
        task.draw(np.random.default_rng(shifted(0)), {"image": zeros}, 5)
