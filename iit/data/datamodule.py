"""Pairs as a Lightning data module."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from iit.data.encoded import Cost, EncodedPairs, Encoder
from iit.data.pairs import Pairs

WINDOW = 4
"""How many batches are cut from a window of shuffled pairs, which is sorted by cost first."""


class PairsDataModule(L.LightningDataModule):
    """Training and validation pairs in batches; the test split cannot be reached from here.

    The order of epoch e depends on (seed, e) only. A training that is continued from a checkpoint
    therefore sees the batches that an uninterrupted one sees.

    Arguments:
        pairs: the pairs.
        network: encodes them.
        batch_size: pairs a training batch.
        eval_batch_size: pairs a validation batch.
        seed: of the order.
        cost: says what each example costs to run; the pairs of a batch cost about the same.

    Raises:
        ValueError: for a batch size below 1.
    """

    def __init__(
        self,
        pairs: Pairs,
        network: Encoder,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        seed: int = 0,
        cost: Cost | None = None,
    ):
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(
                f"Batch sizes must be at least 1; got {batch_size} and {eval_batch_size}."
            )
        self.pairs, self.network = pairs, network
        self.train = EncodedPairs(pairs.split("train"), pairs.variables, network)
        self.validation = EncodedPairs(pairs.split("validation"), pairs.variables, network)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.cost = seed, cost

    def train_dataloader(self) -> DataLoader[int]:
        """Training pairs, shuffled anew or sampled anew (`Pairs.again`) in each epoch."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        # Epoch 0 has the pairs as they were sampled.
        if epoch and self.pairs.again is not None:
            self.train = EncodedPairs(self.pairs.again(epoch), self.pairs.variables, self.network)
        batches = AlikeBatches(self.train.costs(self.cost), self.batch_size, self.seed)
        return DataLoader(self.train, batch_sampler=batches, collate_fn=self.train.batch)

    def val_dataloader(self) -> DataLoader[int]:
        """Validation pairs in a fixed order."""
        rows = self.validation.costs(self.cost).argsort(stable=True).split(self.eval_batch_size)
        return DataLoader(
            self.validation,
            batch_sampler=list(map(Tensor.tolist, rows)),
            collate_fn=self.validation.batch,
        )


class AlikeBatches(Sampler[list[int]]):
    """Batches of rows that cost about the same, in an order that is shuffled anew in each epoch.

    The rows are shuffled and cut into windows of a few batches. Rows of about equal cost in a
    window become a batch.

    Arguments:
        costs: LongTensor[n], of the rows.
        size: rows a batch.
        seed: of the order.
    """

    def __init__(self, costs: Tensor, size: int, seed: int):
        self.costs, self.size = costs, size
        # One replica of a distributed sampler: the sampler of torch whose order is a function of
        # (seed, epoch). It asks its dataset for nothing but the length.
        numbers: Any = range(len(costs))
        self.sampler = DistributedSampler(numbers, num_replicas=1, rank=0, shuffle=True, seed=seed)

    def __len__(self) -> int:
        # Rounded up: the last batch may be smaller.
        return -(-len(self.costs) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.tensor(list(self.sampler))
        # With equal costs there is nothing to sort.
        if bool((self.costs == self.costs[0]).all()):
            for batch in order.split(self.size):
                yield batch.tolist()
            return
        # Lightning sets the sampler's epoch, so the order is a function of (seed, epoch).
        shuffle = torch.Generator().manual_seed(self.sampler.seed + self.sampler.epoch)
        # Rows of equal cost come together within a window, whose batches are then shuffled.
        for window in order.split(WINDOW * self.size):
            batches = window[self.costs[window].argsort(stable=True)].split(self.size)
            for i in torch.randperm(len(batches), generator=shuffle):
                yield batches[i].tolist()
