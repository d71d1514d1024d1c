import torch

from iit.data.datamodule import WINDOW, AlikeBatches
from tests.seeds import shifted


def test_batches_are_alike_shuffled_and_complete():
    costs = torch.randint(1, 9, (1000,), generator=torch.Generator().manual_seed(shifted(0)))
    batches = AlikeBatches(costs, 20, seed=3)
    first, again = list(batches), list(batches)
    assert first == again
    assert sorted(row for batch in first for row in batch) == list(range(1000))
    assert len(first) == len(batches) == 50
    plain = torch.randperm(1000, generator=torch.Generator().manual_seed(shifted(1))).split(20)
    paid = sum(int(costs[batch].max()) * len(batch) for batch in first)
    assert paid < 0.8 * sum(int(costs[batch].max()) * len(batch) for batch in plain)
    means = torch.tensor([costs[batch].float().mean() for batch in first])
    order = torch.tensor(
        [means[i : i + WINDOW].argsort().tolist() == [0, 1, 2, 3] for i in range(0, 48, WINDOW)]
    )
    assert not order.all(), "the cheap batches of a window do not always come first"
    batches.sampler.set_epoch(1)
    assert list(batches) != first


def test_where_all_cost_the_same_the_batches_are_those_of_the_shuffle():
    batches = AlikeBatches(torch.zeros(10, dtype=torch.long), 4, seed=0)
    assert list(batches) == [part.tolist() for part in torch.tensor(list(batches.sampler)).split(4)]


def test_a_last_batch_may_be_smaller():
    assert [len(batch) for batch in AlikeBatches(torch.arange(5), 2, seed=0)] in (
        [2, 2, 1],
        [2, 1, 2],
        [1, 2, 2],
    )
