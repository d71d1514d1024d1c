"""The lens's figure shows each token where it belongs."""

import numpy as np
import pytest

from iit.report import lens_figure


def line(layer, position, top, probability, rank=1):
    return {
        "layer": layer,
        "row": 0,
        "position": position,
        "token": f" t{position}",
        "rank": rank,
        "top": top,
        "probability": probability,
    }


def test_each_token_in_its_place():
    lines = [
        line(0, 0, " a", 0.25),
        line(4, 0, "$b$", 0.5),
        line(4, 2, "\n", 0.75),
        line(4, 2, "other", 0.1, rank=2),
    ]
    axes = lens_figure(lines).axes[0]
    np.testing.assert_array_equal(
        np.ma.filled(axes.images[0].get_array(), np.nan), [[0.25, np.nan], [0.5, 0.75]]
    )
    assert {(text.get_text(), text.get_position()) for text in axes.texts} == {
        ("_a", (0, 0)),
        (r"\$b\$", (0, 1)),
        (r"\n", (1, 1)),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["_t0", "_t2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "4"]


def test_what_cannot_be_shown():
    with pytest.raises(ValueError, match="nothing to show"):
        lens_figure([])
    with pytest.raises(ValueError, match="one prompt"):
        lens_figure([line(0, 0, "a", 0.1), line(0, 0, "b", 0.2)])
