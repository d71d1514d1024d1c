"""The network written by hand computes what its docstring says, where it says."""

import numpy as np
import pytest
import torch

from iit.data import Pairs
from iit.network import equality_by_hand
from iit.tasks import equality


def test_its_units_hold_the_variables_and_its_answers_are_right():
    network = equality_by_hand()
    pairs = (
        Pairs.sample(equality(), None, n_train=500, n_val=20, n_test=20, variable=())
        .split("train")
        .with_format("numpy")
    )
    x = torch.from_numpy(np.stack(pairs["base"])).float()
    a, b, c, d = x.split(4, 1)
    left, right = ((one == other).all(1) for one, other in ((a, b), (c, d)))
    hidden = network.model.layers[:2](x)
    assert torch.equal(hidden[:, 0], left.float())
    assert torch.equal(hidden[:, 1], right.float())
    assert not hidden[:, 2:].any()
    assert torch.equal(network.model(x).argmax(1), (left == right).long())
    assert 0.3 < float(left.float().mean()) < 0.7
    with pytest.raises(ValueError, match=r"4·dim=16"):
        equality_by_hand(width=8)
