import pytest
import torch

from iit.intervened.spill import CHUNK, Spill


def test_beyond_the_budget_tensors_lie_in_files(tmp_path):
    spill = Spill(100, tmp_path)
    tensors = [torch.randn(5, 4), torch.randn(3).to(torch.bfloat16), torch.arange(7), torch.zeros(0), torch.randn(2, 3).T]
    kept = [spill.keep(tensor) for tensor in tensors]
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(kept, tensors, strict=True))
    assert (spill.in_memory, spill.in_files) == (80 + 6, 56 + 24)
    assert kept[2].untyped_storage().data_ptr() == kept[4].untyped_storage().data_ptr(), "small ones share a file"
    assert kept[2].untyped_storage().nbytes() == CHUNK
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind"
    kept[0][0, 0] = 7.0
    assert tensors[0][0, 0] != 7.0, "they are copies"
    spill.clear()
    assert torch.equal(kept[2], tensors[2]), "who holds a tensor keeps it"


def test_a_large_tensor_gets_a_file_of_its_own():
    spill = Spill(0)
    small, large = spill.keep(torch.ones(3)), spill.keep(torch.ones(CHUNK // 4 + 1))
    assert small.untyped_storage().data_ptr() != large.untyped_storage().data_ptr()
    assert small.sum() == 3
    assert large.sum() == CHUNK // 4 + 1


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="cannot be negative"):
        Spill(-1)
