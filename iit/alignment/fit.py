"""Fitting an alignment: the only caller of Lightning's Trainer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from iit.alignment.alignment import Alignment
from iit.alignment.best import BestWeights
from iit.alignment.das import DAS
from iit.data import Pairs, PairsDataModule
from iit.intervened import ActivationStore


class Fitted(NamedTuple):
    """How a fit went.

    epoch: the epoch whose weights were kept (counted from 0), chosen by validation.
    value: its validation metric.
    n_epochs, n_steps: how long it was trained.
    """

    epoch: int
    value: float
    n_epochs: int
    n_steps: int


def fit(
    alignment: Alignment,
    pairs: Pairs,
    *,
    module: Callable[..., L.LightningModule] = DAS,
    trainer: Callable[..., L.Trainer] = L.Trainer,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
    batch_size: int = 32,
    eval_batch_size: int = 64,
    max_epochs: int = 10,
    seed: int = 0,
    folder: str | Path = ".",
    ckpt_path: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    monitor: str | None = None,
) -> Fitted:
    """Train the alignment on the training pairs and leave it with the weights that were best on validation.

    module: makes the Lightning module from the alignment (and `config`): `DAS` trains the interventions, `IIT` the network. The
        network is frozen and in eval mode again when this returns or raises.
    monitor: the validation metric that chooses the epoch; by default the module's own.
    trainer: called with what this function decides (epochs, device, callbacks, loggers, folder).
    ckpt_path: a checkpoint to go on from; it must belong to a run with the same `config`.

    Raises ValueError when the alignment was made without a language model, a split lacks changing pairs, or the checkpoint is
    of another run; FileNotFoundError when there is no checkpoint.
    """
    network = alignment.studied
    if network is None:
        raise ValueError("fit tokenizes the pairs: make the alignment with the LanguageModel from iit.load_network.")
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"ckpt_path: there is no checkpoint {ckpt_path}.")
    lightning_module: Any = module(alignment, config=config)
    data = PairsDataModule(
        pairs,
        network,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        seed=seed,
        cost=None if lightning_module.trains_network else alignment.n_columns,
    )
    if pairs.variables and not bool(data.validation.changing.any()):
        raise ValueError("No validation pair is changing: there is nothing to choose the best epoch by.")
    best = BestWeights(monitor or lightning_module.monitor)
    device = network.device
    runner = trainer(
        max_epochs=max_epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=[best, *callbacks],
        logger=list(loggers) or False,
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        reload_dataloaders_every_n_epochs=int(pairs.again is not None),
    )
    alignment.rows = ()  # they were of other weights
    with _trainable(alignment) if lightning_module.trains_network else _remembering(alignment):
        runner.fit(lightning_module, datamodule=data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    if runner.interrupted:
        raise KeyboardInterrupt("Training was interrupted; go on with ckpt_path= and the last checkpoint.")
    assert best.epoch is not None
    assert best.value is not None
    return Fitted(best.epoch, best.value, runner.current_epoch, runner.global_step)


@contextmanager
def _remembering(alignment: Alignment) -> Iterator[None]:
    """The network stays as it is, so what earlier runs computed is worth keeping."""
    if alignment.store is None:
        alignment.store = ActivationStore(alignment.network)
    yield


@contextmanager
def _trainable(alignment: Alignment) -> Iterator[None]:
    """The network is to be trained; what earlier runs computed is forgotten, before and after."""
    alignment.store = None
    network = alignment.network
    modes = [(module, module.training) for module in network.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.train().requires_grad_(True)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, trained in frozen:
            parameter.requires_grad_(trained)
            parameter.grad = None
