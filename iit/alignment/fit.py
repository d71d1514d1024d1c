"""Fitting an alignment: the only caller of Lightning's Trainer."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, overload

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.alignment.best import LOSS, BestWeights
from iit.alignment.das import DAS
from iit.alignment.initial import initialise
from iit.alignment.labels import check_labels
from iit.alignment.processes import n_processes, started, trainer_options
from iit.alignment.side_by_side import checked_monitor
from iit.data import Pairs, PairsDataModule
from iit.intervened.store import ActivationStore
from iit.network.dimensions import is_apart
from iit.progress import progress

log = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """How a fit went, for one alignment.

    Arguments:
        epoch: the epoch whose weights are used, counted from 0; validation chose it.
        monitor: the validation metric that chose it.
        value: that metric in that epoch.
        n_epochs: how many epochs the alignment was trained.
        n_steps: how many optimizer steps these took.
    """

    epoch: int
    monitor: str
    value: float
    n_epochs: int
    n_steps: int

    def __repr__(self) -> str:
        return (
            f"Fitted({self.monitor} {self.value:.3f} in epoch {self.epoch + 1} of {self.n_epochs}, "
            f"{self.n_steps} steps)"
        )


@dataclass(frozen=True)
class Training:
    """How an alignment is trained: the options of `fit`.

    Arguments:
        module: makes the Lightning module from the alignment. `DAS` trains the interventions,
            `IIT` the network.
        trainer: called with what `fit` decides (epochs, device, callbacks, loggers, folder).
        callbacks: further callbacks of the trainer.
        loggers: where the curves go; none by default.
        batch_size: pairs a training batch.
        eval_batch_size: pairs a validation batch.
        max_epochs: at least 1; -1 where only callbacks end the training.
        seed: of the order of the training pairs.
        folder: the trainer's root folder.
        ckpt_path: a checkpoint to continue from, of a training with the same `config`.
        config: identifies the training in its checkpoints.
        monitor: the validation accuracy that chooses the epoch. The epochs whose 95% interval
            contains the highest accuracy count as equal; the one with the least `val/loss` is used.
            "val/loss" decides alone. By default it is the module's own: `val/iia_changing`, for
            MDAS `val/disentangle`, for a training without interchanges `val/task_accuracy`.
        start: where trained frames begin: random | pca | difference_of_means (see `initialise`).
    """

    module: Callable[..., L.LightningModule] = DAS
    trainer: Callable[..., L.Trainer] = L.Trainer
    callbacks: Sequence[L.Callback] = ()
    loggers: Sequence[Logger] = ()
    batch_size: int = 32
    eval_batch_size: int = 64
    max_epochs: int = 10
    seed: int = 0
    folder: str | Path = "."
    ckpt_path: str | Path | None = None
    config: Mapping[str, Any] | None = None
    monitor: str | None = None
    start: str = "random"


@overload
def fit(alignment: Alignment, pairs: Pairs, **options: Any) -> Fitted: ...
@overload
def fit(alignment: Mapping[str, Alignment], pairs: Pairs, **options: Any) -> dict[str, Fitted]: ...
def fit(
    alignment: Alignment | Mapping[str, Alignment], pairs: Pairs, **options: Any
) -> Fitted | dict[str, Fitted]:
    """Train an alignment on the training pairs, and choose the best epoch on the validation pairs.

    The alignment ends with the weights of the epoch that validation chose. It is then in eval mode,
    in which its gates are hard (0 or 1). The network is frozen and in eval mode again when this
    function returns or raises.

    Arguments:
        alignment: an alignment, or {name: alignment} for several that are trained side by side (see
            `DAS`). On the same batches each becomes what it would become alone. A batch holds pairs
            whose runs cost about the same, summed over all alignments. Alignments at other
            positions therefore see other batches than each would see alone.
        pairs: the training and validation pairs; the test split is not read.
        options: as in `Training`.

    Returns:
        A `Fitted`, or {name: Fitted} for several alignments.

    Raises:
        ValueError: the alignment was made with a bare module, which cannot encode the pairs; the
            pairs have a variable that the alignment lacks; edits overlap (see
            `Alignment.check_apart`); `max_epochs` is neither -1 nor at least 1; `start` is unknown;
            the module does not log the monitor; a label is none of the network's answers; the
            validation split has no changing pair; no validation batch may run; the checkpoint is of
            another training.
        FileNotFoundError: there is no such checkpoint.
        KeyboardInterrupt: on Ctrl-C. Its message says how to go on.
    """
    training = Training(**options)
    # A single alignment has the empty name: its metrics are logged under the plain names.
    members = dict(alignment) if isinstance(alignment, Mapping) else {"": alignment}
    alignments = list(members.values())
    network = next((member.studied for member in alignments), None)
    if network is None:
        raise ValueError(
            "fit encodes the pairs, which a bare module cannot: make the alignment with a "
            "LanguageModel (iit.load_network) or a Classifier."
        )
    for member in alignments:
        member.check_apart()
        if member.edits and not set(pairs.variables) <= set(member.variables):
            raise ValueError(
                f"The pairs are for variable {pairs.variable!r}, the alignment for "
                f"{list(map(str, member.variables))}."
            )
    if training.max_epochs < 1 and training.max_epochs != -1:
        raise ValueError(
            f"max_epochs={training.max_epochs}: training needs an epoch at least (-1: no end). "
            "To score what there is, use evaluate."
        )
    smallest = min(training.batch_size, training.eval_batch_size)
    n = n_processes(training.trainer, network.device, smallest)
    checkpoint = None
    if training.ckpt_path is not None:
        checkpoint = Path(training.ckpt_path).expanduser()
        if not checkpoint.is_file():
            raise FileNotFoundError(f"ckpt_path: there is no checkpoint {checkpoint}.")
    lightning_module: Any = training.module(alignment)
    lightning_module.config = training.config or {}
    monitor = training.monitor or lightning_module.monitor
    lightning_module.monitor = checked_monitor(monitor, lightning_module.monitors)
    data = PairsDataModule(
        pairs,
        network,
        batch_size=training.batch_size,
        eval_batch_size=training.eval_batch_size,
        seed=training.seed,
        # Passes over a network in training never resume, so every pair costs its length.
        cost=None if lightning_module.trains_network else partial(_cost, alignments),
    )
    for encoded in (data.train, data.validation):
        check_labels(network, encoded)
    lightning_module.check(data.train.batch([0]))
    if is_apart(network.model) and (n > 1 or lightning_module.trains_network):
        raise ValueError(
            f"{network.name} is dispatched, offloaded or run elsewhere: it cannot be trained "
            "(module=iit), and one process trains its edits. Load it on one device."
        )
    if n > 1 and lightning_module.objective.needs_natural:
        raise ValueError("objective: one that compares activations is trained by one process.")
    trained = set(lightning_module.trained or pairs.variables)
    # Only a changing pair can show that an interchange works. A pair counts where all that it
    # interchanges is trained.
    pairs_of_trained = map(trained.issuperset, data.validation.interchanged)
    if pairs.variables and not data.validation.changing[list(pairs_of_trained)].any():
        raise ValueError(
            f"No validation pair that interchanges only {sorted(trained)} is changing: there is "
            "nothing to choose the best epoch by."
        )
    best, device = BestWeights(), network.device
    # Without a last epoch their number is negative, and there is no total.
    n_batches = training.max_epochs * -(-len(data.train) // training.batch_size)
    steps = progress(count(), "Training", n_batches)
    shown = LambdaCallback(on_train_batch_end=lambda *_: next(steps), on_train_epoch_end=_log_epoch)
    callbacks = [best, *training.callbacks, _StartState(), shown]
    trainer = training.trainer(
        max_epochs=training.max_epochs,
        **trainer_options(n, device),
        callbacks=callbacks,
        logger=list(training.loggers) or False,
        default_root_dir=str(training.folder),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        # Pairs that are sampled anew need a new loader in each epoch.
        reload_dataloaders_every_n_epochs=int(pairs.again is not None),
    )
    if trainer.limit_val_batches == 0:
        raise ValueError(
            "limit_val_batches=0: the epoch is chosen on validation; let at least one "
            "batch of it run."
        )
    # Lightning's bar and that of `steps` would garble each other.
    if trainer.progress_bar_callback:
        trainer.progress_bar_callback.disable()
    for member in alignments:
        member.rows, member.fitted = (), None  # those of earlier weights
        initialise(member, pairs, training.start, batch_size=training.eval_batch_size)
    if not lightning_module.trains_network:
        _share_a_store(alignments, n > 1)
    # Lightning sets a handler of its own for Ctrl-C; this is the one to restore.
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with ExitStack() as stack:
            for member in alignments:
                member.train()
                # In eval mode learned masks and boundaries are hard. Lightning leaves what it has
                # trained on the CPU.
                stack.callback(lambda member=member: member.eval().to(device))
                if lightning_module.trains_network:
                    stack.enter_context(_trainable(member, device))
            # The other processes begin where this one stands, and log nothing.
            alike = {"start": "random", "loggers": [DummyLogger()] * len(training.loggers)}
            call = partial(fit, alignment, pairs, **vars(training) | alike)
            stack.enter_context(started(n, device, call))
            stack.callback(steps.close)
            next(steps)
            trainer.fit(lightning_module, datamodule=data, ckpt_path=checkpoint)
    except SystemExit as leaving:
        # Lightning makes this of Ctrl-C, and leaves Ctrl-C without effect.
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt(_how_to_go_on(callbacks)) from None
    fits = {}
    for name in members:
        epoch = best.kept(name)
        value = epoch.loss if monitor == LOSS else epoch.value
        n_epochs = lightning_module.stopped.get(name, trainer.current_epoch)
        # A member that stopped early took part in its share of the steps only.
        n_steps = trainer.global_step * n_epochs // max(trainer.current_epoch, 1)
        fits[name] = members[name].fitted = Fitted(epoch.epoch, monitor, value, n_epochs, n_steps)
    if isinstance(alignment, Mapping):
        return fits
    return fits[""]


class _StartState(L.Callback):
    """Save a checkpoint of the training's start beside those of its epochs; delete it at the end.

    With it, a training that Ctrl-C interrupts in its first epoch can be continued.
    """

    # The name is that of `ModelCheckpoint`: `_how_to_go_on` reads both.
    best_model_path = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None and trainer.global_step == 0:
            self.best_model_path = f"{folder}/start.ckpt"
            trainer.save_checkpoint(self.best_model_path)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.best_model_path:
            Path(self.best_model_path).unlink(missing_ok=True)


def _log_epoch(trainer: L.Trainer, _: Any) -> None:
    """Log what the module shows of an epoch."""
    figures = ", ".join(f"{name} {x:.3f}" for name, x in trainer.progress_bar_metrics.items())
    log.info("Epoch %d: %s", trainer.current_epoch + 1, figures)


def _how_to_go_on(callbacks: Sequence[Any]) -> str:
    for callback in callbacks:
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return (
                "Training was interrupted. Go on, from the last epoch that was kept (start.ckpt: "
                f"from the start of the training), with ckpt_path={path}"
            )
    return (
        "Training was interrupted, and there is no checkpoint to go on from: a ModelCheckpoint "
        "among the callbacks (callbacks=default) writes one at the start and at the end of each "
        "epoch. Start afresh."
    )


def _cost(members: Sequence[Alignment], base: Any, active: Any) -> Tensor | None:
    """The number of positions that each example costs in all members together, LongTensor[batch].

    None where a pass does not resume at an edited block: it computes all positions.
    """
    costs = []
    for member in members:
        cost = member.n_columns(base, active)
        if cost is None:
            return None
        costs.append(cost)
    return torch.stack(costs).sum(0)


def _share_a_store(members: Sequence[Alignment], several: bool) -> None:
    """Give all members one activation store: a frozen network computes the same in every epoch.

    Several processes share it, too.
    """
    stores = [member.store for member in members if member.store is not None]
    if stores:
        # The network may have changed since this store was filled.
        stores[0].check()
    else:
        stores = [ActivationStore(members[0].network)]
    for member in members:
        member.store = stores[0]
    if several:
        stores[0].share()


@contextmanager
def _trainable(alignment: Alignment, device: torch.device) -> Iterator[None]:
    """Make the network trainable, and restore its modes, `requires_grad` and device afterwards."""
    log.info("The whole network runs: it is trained.")
    # Activations of a network that changes are of no use to later runs.
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
        network.to(device)
