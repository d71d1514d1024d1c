"""Fitting an alignment: the only caller of Lightning's Trainer."""

import logging
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.alignment.best import LOSS, BestWeights
from iit.alignment.cells import checked_monitor
from iit.alignment.das import DAS
from iit.alignment.initial import initialise
from iit.alignment.labels import check_labels
from iit.data import Pairs, PairsDataModule
from iit.intervened.store import ActivationStore

log = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """How a fit went.

    epoch: the epoch whose weights were kept (counted from 0), chosen by validation.
    monitor, value: the validation metric that chose it, and what it was then.
    n_epochs, n_steps: how long it was trained.
    """

    epoch: int
    monitor: str
    value: float
    n_epochs: int
    n_steps: int


@overload
def fit(alignment: Alignment, pairs: Pairs, **options: Any) -> Fitted: ...
@overload
def fit(alignment: Mapping[str, Alignment], pairs: Pairs, **options: Any) -> dict[str, Fitted]: ...
# The overloads say what comes out; the options are written once, here.
def fit(  # pyright: ignore[reportInconsistentOverload]
    alignment: Alignment | Mapping[str, Alignment],
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
    start: str = "random",
) -> Fitted | dict[str, Fitted]:
    """Train the alignment on the training pairs. Leave it with the weights of the epoch that
    validation chose, in eval mode (its gates hard).

    alignment: or {name: alignment} of several, trained side by side (see `DAS`); the answer then
        has a `Fitted` for each. On the same batches each becomes what it would alone; batches are
        of pairs whose runs cost alike in all of them, so those of cells at other positions are
        others than each alone would see.
    module: makes the Lightning module from the alignment (and `config`): `DAS` trains the
        interventions, `IIT` the network. The network is frozen and in eval mode again when this
        returns or raises.
    monitor: the validation accuracy that chooses the epoch: of those whose 95% interval contains
        the highest, the one with the least `val/loss` is kept. "val/loss" decides alone. By default
        the module's own: `val/iia_changing`, of MDAS `val/disentangle`, of a training without
        interchanges `val/task_accuracy`.
    max_epochs: at least 1; -1 for no end but the callbacks'.
    start: where trained frames begin: random | pca | difference_of_means (see `initialise`).
    trainer: called with what this function decides (epochs, device, callbacks, loggers, folder).
    ckpt_path: a checkpoint to go on from; it must belong to a run with the same `config`.

    Raises ValueError for a monitor that the module does not log; when the alignment was made
    without a language model, a split lacks changing pairs, a label is none of the network's
    answers, edits overlap (see `Alignment.check_apart`), there is no epoch to train, or the
    checkpoint is of another run; FileNotFoundError when there is no checkpoint; KeyboardInterrupt,
    saying how to go on, on Ctrl-C.
    """
    cells = dict(alignment) if isinstance(alignment, Mapping) else {"": alignment}
    network = next((cell.studied for cell in cells.values()), None)
    callbacks = [*callbacks, _StartState()]
    if network is None:
        raise ValueError(
            "fit tokenizes the pairs: make the alignment with the LanguageModel from "
            "iit.load_network."
        )
    for cell in cells.values():
        cell.check_apart()
        if cell.edits and not set(pairs.variables) <= set(cell.variables):
            raise ValueError(
                f"The pairs are for variable {pairs.variable!r}, the alignment for "
                f"{list(map(str, cell.variables))}."
            )
    if max_epochs < 1 and max_epochs != -1:
        raise ValueError(
            f"max_epochs={max_epochs}: training needs an epoch at least (-1: no end). To score "
            "what there is, use evaluate."
        )
    checkpoint = None if ckpt_path is None else Path(ckpt_path).expanduser()
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"ckpt_path: there is no checkpoint {ckpt_path}.")
    lightning_module: Any = module(alignment, config=config)
    chosen = monitor or lightning_module.monitor
    lightning_module.monitor = checked_monitor(chosen, lightning_module.monitors)
    data = PairsDataModule(
        pairs,
        network,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        seed=seed,
        cost=None if lightning_module.trains_network else partial(_cost, list(cells.values())),
    )
    for encoded in (data.train, data.validation):
        check_labels(network, encoded)
    lightning_module.check(data.train.batch([0]))
    trained = set(lightning_module.trained or pairs.variables)
    counts = [trained.issuperset(names) for names in data.validation.interchanged]
    if pairs.variables and not bool(data.validation.changing[torch.tensor(counts)].any()):
        raise ValueError(
            f"No validation pair that interchanges only {sorted(trained)} is changing: there is "
            "nothing "
            "to choose the best epoch by."
        )
    best = BestWeights()
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
    if runner.limit_val_batches == 0:
        raise ValueError(
            "limit_val_batches=0: the epoch is chosen on validation; let at least one batch of "
            "it run."
        )
    for cell in cells.values():
        cell.rows = ()  # they were of other weights
        initialise(cell, pairs, start, batch_size=eval_batch_size)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with _in_training(cells.values(), device, network=lightning_module.trains_network):
            runner.fit(lightning_module, datamodule=data, ckpt_path=checkpoint)
    except SystemExit as leaving:
        # Lightning makes this of Ctrl-C, and leaves Ctrl-C without effect.
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt(_how_to_go_on(callbacks)) from None
    found = {}
    for name in cells:
        kept = best.kept(name)
        value = kept.loss if lightning_module.monitor == LOSS else kept.value
        n_epochs = lightning_module.stopped.get(name, runner.current_epoch)
        n_steps = runner.global_step * n_epochs // max(runner.current_epoch, 1)
        found[name] = Fitted(kept.epoch, lightning_module.monitor, value, n_epochs, n_steps)
    return found if isinstance(alignment, Mapping) else found[""]


class _StartState(L.Callback):
    """During a run a checkpoint of its start stands beside those of its epochs."""

    best_model_path = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None and trainer.global_step == 0:
            self.best_model_path = f"{folder}/start.ckpt"
            trainer.save_checkpoint(self.best_model_path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best_model_path:
            Path(self.best_model_path).unlink(missing_ok=True)


def _how_to_go_on(callbacks: Sequence[Any]) -> str:
    """What to do after an interrupt, by what was kept of the run."""
    for callback in callbacks:
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return (
                "Training was interrupted. Go on, from the last epoch that was kept "
                f"(start.ckpt: from the start of the training), with ckpt_path={path}"
            )
    return (
        "Training was interrupted, and there is no checkpoint to go on from: a ModelCheckpoint "
        "among the callbacks "
        "(callbacks=default) writes one at the start and at the end of each epoch. Start afresh."
    )


def _cost(cells: Sequence[Alignment], base: Any, active: Any) -> Tensor | None:
    """What running each example in all cells costs; None where runs do not resume."""
    costs = [cell.n_columns(base, active) for cell in cells]
    return (
        None
        if any(cost is None for cost in costs)
        else torch.stack([cost for cost in costs if cost is not None]).sum(0)
    )


@contextmanager
def _in_training(
    cells: Collection[Alignment], device: torch.device, *, network: bool
) -> Iterator[None]:
    """The alignments are left in eval mode, in which what they learned is hard (masks, boundaries),
    and on the network's device: Lightning
    takes what it has trained to the CPU."""
    for cell in cells:
        cell.train()
    try:
        with _trainable(*cells) if network else _remembering(cells):
            yield
    finally:
        for cell in cells:
            cell.eval().to(device)
            if network:
                cell.network.to(device)


@contextmanager
def _remembering(cells: Collection[Alignment]) -> Iterator[None]:
    """The network stays as it is, so what earlier runs computed is worth keeping, for all cells in
    one store.
    """
    store = next((cell.store for cell in cells if cell.store is not None), None)
    if store is not None:
        store.check()
    for cell in cells:
        cell.store = store = ActivationStore(cell.network) if store is None else store
    yield


@contextmanager
def _trainable(alignment: Alignment) -> Iterator[None]:
    """The network is to be trained; what earlier runs computed is forgotten, before and after."""
    log.info("The whole network runs: it is trained.")
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
