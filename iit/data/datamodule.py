"""Pairs for Lightning."""

import lightning as L
from torch.utils.data import DataLoader, DistributedSampler

from iit.data.encoded import EncodedPairs, Encoder
from iit.data.pairs import Pairs


class PairsDataModule(L.LightningDataModule):
    """Training and validation pairs in batches; the test split is not reachable from here.

    The order of epoch e depends on (seed, e) only, so a resumed run sees the batches an uninterrupted one sees.
    """

    def __init__(self, pairs: Pairs, network: Encoder, *, batch_size: int = 32, eval_batch_size: int = 64, seed: int = 0):
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"Batch sizes must be at least 1; got {batch_size} and {eval_batch_size}.")
        self.pairs, self.network = pairs, network
        self.train = EncodedPairs(pairs.split("train"), pairs.variables, network)
        self.validation = EncodedPairs(pairs.split("validation"), pairs.variables, network)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed

    def train_dataloader(self) -> DataLoader[int]:
        """Shuffled anew each epoch, or sampled anew (`Pairs.again`)."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        if epoch and self.pairs.again is not None:
            self.train = EncodedPairs(self.pairs.again(epoch), self.pairs.variables, self.network)
        # One replica of a distributed sampler: the sampler of torch whose order is a function of (seed, epoch).
        sampler = DistributedSampler(self.train, num_replicas=1, rank=0, shuffle=True, seed=self.seed)
        return DataLoader(self.train, self.batch_size, sampler=sampler, collate_fn=self.train.batch)

    def val_dataloader(self) -> DataLoader[int]:
        """In fixed order."""
        return DataLoader(self.validation, self.eval_batch_size, collate_fn=self.validation.batch)
