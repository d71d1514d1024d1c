import os
import resource
import signal

import pytest
import torch

from iit.intervened.spill import CHUNK_BYTES, Spill


def test_beyond_the_budget_tensors_lie_in_files(tmp_path):
    spill = Spill(100, tmp_path)
    tensors = [
        torch.randn(5, 4),
        torch.randn(3).to(torch.bfloat16),
        torch.arange(7),
        torch.zeros(0),
        torch.randn(2, 3).T,
    ]
    kept = [spill.keep(tensor) for tensor in tensors]
    assert all(
        torch.equal(one, other) and one.dtype == other.dtype
        for one, other in zip(kept, tensors, strict=True)
    )
    assert (spill.in_memory, spill.in_files) == (80 + 6, 56 + 24)
    assert kept[2].untyped_storage().data_ptr() == kept[4].untyped_storage().data_ptr(), (
        "small ones share a file"
    )
    assert kept[2].untyped_storage().nbytes() == CHUNK_BYTES
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind"
    kept[0][0, 0] = 7.0
    assert tensors[0][0, 0] != 7.0, "they are copies"
    spill.clear()
    assert torch.equal(kept[2], tensors[2]), "who holds a tensor keeps it"


def test_a_large_tensor_gets_a_file_of_its_own():
    spill = Spill(0)
    small, large = spill.keep(torch.ones(3)), spill.keep(torch.ones(CHUNK_BYTES // 4 + 1))
    assert small.untyped_storage().data_ptr() != large.untyped_storage().data_ptr()
    assert small.sum() == 3
    assert large.sum() == CHUNK_BYTES // 4 + 1


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="cannot be negative"):
        Spill(-1)


def test_what_was_dropped_counts_no_more(tmp_path):
    spill = Spill(100, tmp_path)
    for _ in range(5):
        spill.drop(spill.keep(torch.ones(20)))
    assert (spill.in_memory, spill.in_files) == (0, 0)
    spill.drop(torch.ones(20))
    kept = spill.keep(torch.ones(20)), spill.keep(torch.ones(20))
    spill.drop(kept[1])
    assert (spill.in_memory, spill.in_files) == (80, 80), (
        "another's tensor, and one in a file, take no memory of the budget"
    )


def test_space_is_reserved_before_it_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("iit.intervened.spill.CHUNK_BYTES", 2**20)
    taken = []
    real = torch.from_file
    monkeypatch.setattr(
        torch,
        "from_file",
        lambda name, **kwargs: taken.append(os.stat(name).st_blocks * 512) or real(name, **kwargs),
    )
    Spill(0, tmp_path).keep(torch.ones(3))
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    Spill(0, tmp_path).keep(torch.ones(3))
    assert min(taken) >= 2**20, "no holes, that a full disk could not fill"


@pytest.mark.parametrize("fallocate", [True, False])
def test_a_full_disk_is_an_error_that_says_what_to_do(fallocate, tmp_path, monkeypatch):
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(
            OSError,
            match=(
                rf"budget of 0 bytes .* wanted {CHUNK_BYTES} more of {tmp_path}, "
                r".*store\.folder=.*store\.budget="
            ),
        ):
            Spill(0, tmp_path).keep(torch.ones(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
