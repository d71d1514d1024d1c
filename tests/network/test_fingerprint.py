import pytest
import torch
from torch import nn

from iit.network import fingerprint


class Parts(nn.Module):
    kept: torch.Tensor
    forgotten: torch.Tensor

    def __init__(self, n=1000):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(n, dtype=torch.float32))
        self.register_buffer("kept", torch.tensor(3))
        self.register_buffer("forgotten", torch.tensor(5), persistent=False)
        self.register_buffer("empty", torch.zeros(0, 4))


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 154, 1000])
def test_the_first_and_last_value_count(n):
    told = fingerprint(Parts(n))
    for index in (0, -1):
        other = Parts(n)
        with torch.no_grad():
            other.weight[index] += 1
        assert fingerprint(other) != told


def test_values_between_are_evenly_spaced():
    module, seen = Parts(), []
    told = fingerprint(module)
    for index in range(1000):
        with torch.no_grad():
            module.weight[index] += 1
            if fingerprint(module) != told:
                seen.append(index)
            module.weight[index] -= 1
    assert seen == [i * 999 // 63 for i in range(64)]


def test_names_shapes_dtypes_and_saved_buffers_count():
    told = fingerprint(Parts())
    assert fingerprint(nn.Sequential(Parts())) != told
    assert fingerprint(Parts().bfloat16()) != told
    shaped, kept, forgotten = Parts(), Parts(), Parts()
    shaped.weight = nn.Parameter(shaped.weight.detach().reshape(10, 100))
    kept.kept += 1
    forgotten.forgotten += 1
    assert fingerprint(shaped) != told
    assert fingerprint(kept) != told
    assert fingerprint(forgotten) == told


def test_it_is_the_same_in_every_process_and_layout():
    module = Parts(600)
    told = fingerprint(module)
    assert told == "c0f1fa2d13e8f6eb054b93486eab9ec2e8d730200dfb7817de1778f916123d47"
    module.weight = nn.Parameter(torch.stack([module.weight.detach(), torch.zeros(600)], 1)[:, 0])
    assert not module.weight.is_contiguous()
    assert fingerprint(module) == told
