import pytest
import torch
from torch import nn

from iit.network.hooks import at_call


class TwoSoftmaxes(nn.Module):
    def forward(self, x, fails=False):
        first = nn.functional.softmax(x, -1)
        if fails:
            raise ValueError("inside the forward")
        return first, x.softmax(-1)


def test_the_first_call_is_edited_and_no_other():
    network, x = TwoSoftmaxes(), torch.randn(2, 3)
    seen = []
    attached = at_call(network, "softmax", lambda h: seen.append(h) or h.square())
    for _ in range(2):
        first, second = network(x)
        assert torch.equal(first, x.softmax(-1).square())
        assert torch.equal(second, x.softmax(-1))
    attached.remove()
    assert torch.equal(network(x)[0], x.softmax(-1))
    assert len(seen) == 2


def test_what_runs_after_a_forward_that_raised_is_not_edited():
    network, x = TwoSoftmaxes(), torch.randn(2, 3)
    attached = at_call(network, "softmax", torch.zeros_like)
    with pytest.raises(ValueError, match="inside the forward"):
        network(x, fails=True)
    assert not torch.overrides._get_current_function_mode_stack()
    attached.remove()
    assert not network._forward_hooks
    assert not network._forward_pre_hooks
