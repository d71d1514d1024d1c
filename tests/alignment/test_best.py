"""Which epochs are kept while a training goes on."""

import random
from itertools import pairwise
from math import inf
from types import SimpleNamespace

from iit.alignment import BestWeights
from iit.alignment.best import Epoch, in_question


def histories():
    draw = random.Random(0)
    for _ in range(100):
        epochs = []
        for number in range(12):
            value = draw.randint(0, 20) / 20
            high, loss = value + draw.randint(0, 4) / 20, draw.randint(0, 9) / 10
            epochs.append(Epoch(number, value, high, loss, {}))
        yield epochs


def test_what_is_kept_gives_the_choice_among_all_epochs():
    for epochs in histories():
        kept = []
        for number, epoch in enumerate(epochs):
            so_far = epochs[: number + 1]
            highest = max(one.value for one in so_far)
            kept = in_question([*kept, epoch], highest)
            among = [one for one in so_far if one.high >= highest]
            assert kept[0] is min(among, key=lambda one: one.loss)


def test_each_epoch_that_is_kept_may_still_be_chosen():
    for epochs in histories():
        kept = in_question(epochs, max(one.value for one in epochs))
        for _, epoch in pairwise(kept):
            # It raises the highest accuracy to the end of this epoch's interval.
            later = Epoch(12, epoch.high, epoch.high, inf, {})
            assert in_question([*kept, later], later.value)[0] is epoch


def test_of_a_cell_that_stopped_only_the_choice_is_kept():
    best = BestWeights()
    chosen, other = Epoch(0, 0.5, 0.6, 1.0, {}), Epoch(1, 0.6, 0.7, 2.0, {})
    best.epochs["early"] = [chosen, other]
    best.on_validation_end(SimpleNamespace(), SimpleNamespace(stopped={"early": 2}, running=()))
    assert best.epochs["early"] == [chosen]
