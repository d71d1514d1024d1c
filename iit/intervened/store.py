"""A store of activations: a prompt that occurs in many pairs is run once."""

import json
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from iit.batch import IGNORED, Batch, Inputs, behind_bridge
from iit.intervened.edited_run import any_active
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import SiteColumns
from iit.intervened.resume import Prefix, stacked_cache
from iit.intervened.snapshot import NetworkSnapshot
from iit.network.components import blocks_of
from iit.network.inputs import prepare
from iit.progress import progress
from iit.site import Site, Sites

log = logging.getLogger(__name__)

SHARDS = "activations-*.safetensors"
"""The shards of a shared folder; nothing else is read or deleted there."""

PromptTokens = tuple[int, ...]
"""The real tokens of a prompt."""

Key = tuple[Site | None, PromptTokens]
"""What a kept tensor is of.

With a site (without its position): the prompt's activations, Tensor[column, width]. With None: its
keys and values in the last blocks, Tensor[block, 2, head, column, width], at all columns but the
last.
"""


class ActivationStore:
    """Activations of one frozen network, keyed by prompt and site.

    It is filled as prompts come, or up front by `fill`. Reading equals `observe` on the same batch;
    only prompts that are not kept are run. Everything is forgotten when the network has changed.
    Most changes are noticed with every batch, and any change of the weights by `check`.
    `NetworkSnapshot` says what a batch does not notice (writes through `.data`), and what neither
    does: methods that were replaced on a class, insides of objects that modules hold, settings of
    libraries.

    Arguments:
        budget: how many bytes are kept where the network is. What comes beyond goes to
            memory-mapped files, which vanish with the store. With a shelf it lies there.
        folder: where these files lie; by default the system's folder for temporary files.
        shelf: a folder in which everything that was run is kept, for the other jobs of a sweep and
            for later processes. One process at a time runs what the shelf lacks. Values are those
            of the batch in which a prompt was first run. Figures may differ in the last bits from a
            run without a shelf.
        limit: how many bytes the shelf may take, for all networks together. Beyond them the oldest
            files are deleted.
        layers: the blocks at which the runs of a sweep will resume. A prompt is then run once for
            all of them.
        under: the context in which prompts are run, where all runs share edits of the embedding
            (`stored` of an `IntervenedModel`). What `read` returns is of runs without this context,
            and is not kept.

    Raises ValueError for a negative budget, and for a shelf with `under`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        budget: int = 4 * 2**30,
        folder: str | Path | None = None,
        shelf: str | Path | None = None,
        limit: int = 64 * 2**30,
        layers: Iterable[int] = (),
        under: Callable[[Batch], AbstractContextManager[Any]] | None = None,
    ):
        if budget < 0:
            raise ValueError(f"budget={budget} is a number of bytes; it cannot be negative.")
        if shelf is not None and under is not None:
            raise ValueError("A shelf holds runs without any edit; leave `shelf` or `under` out.")
        self._network = network
        self._budget = budget
        self._folder = Path(folder or tempfile.gettempdir())
        self._shelf = None if shelf is None else Path(shelf).expanduser()
        self._limit = limit
        self.layers = frozenset(layers)
        self._under = under
        self._messages: set[str] = set()
        self._refusal: str | None = None
        if behind_bridge(network) is not network:
            self._refusal = "every run of a TransformerBridge writes to its modules"
        self._begin()

    def __len__(self) -> int:
        return len(self._contents)

    def __reduce__(self) -> Any:
        """In another process a store begins with what is on its shelf."""
        return partial(
            ActivationStore,
            self._network,
            budget=self._budget,
            shelf=self._shelf,
            limit=self._limit,
        ), ()

    def share(self) -> None:
        """Put what is kept on a shelf, for other processes; it vanishes with the store."""
        if self._shelf is None:
            folder = tempfile.mkdtemp(prefix="iit-", dir=self._folder)
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            kept, self._shelf = self._contents, Path(folder)
            self._begin()
            self._contents.add(kept)

    def refuses(self, network: nn.Module, batch: Batch) -> str | None:
        """Why repeating a prompt might not give the same numbers; None where it surely does."""
        if network is not self._network:
            return "the activation store was made for another network"
        if (
            not set(batch.kwargs) <= {"input_ids", "attention_mask"}
            or batch.kwargs.get("input_ids") is None
        ):
            return f"the inputs are not tokens alone ({', '.join(batch.kwargs)})"
        # A refusal is for good: the network need not be looked at any more.
        if self._refusal is None:
            self._renew(self._snapshot.change())
        return self._refusal or self._snapshot.refusal()

    def check(self) -> None:
        """Read every byte of the network's weights, and forget everything where one has changed.

        Fits, evaluations and patching check when they begin. `NetworkSnapshot` says which other
        changes are noticed with every batch.
        """
        if self._snapshot.content_changed():
            self._renew("its weights")

    def tell(self, message: str) -> None:
        """Log which way runs go; each message once."""
        if message not in self._messages:
            self._messages.add(message)
            log.info("%s", message)

    def is_trusted(self, layer: int, flags: Mapping[Any, Tensor | None]) -> bool:
        """Whether resuming at this block was compared with a whole run.

        What counts is a comparison with edits active (or with none active), as they are now.
        """
        return (layer, any(map(any_active, flags.values()))) in self._trusted

    def trusts(
        self, layer: int, flags: Mapping[Any, Tensor | None], resumed: Tensor, whole: Tensor
    ) -> bool:
        """Compare the logits of a resumed run with those of the whole run.

        Where they differ by more than rounding, this warns, and the store refuses from then on.
        """
        # The error is relative to the largest logit.
        scale = float(whole.float().abs().max())
        difference = float((resumed.float() - whole.float()).abs().max())
        error = difference / max(scale, 1e-30)
        # Half precision rounds far more.
        tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
        if error <= tolerance:
            self._trusted.add((layer, any(map(any_active, flags.values()))))
            return True
        warnings.warn(
            f"Resuming at block {layer} changes the logits by {error:.1e} of the largest: the "
            "whole network is run instead. Please report this with the network's class "
            f"({type(self._network).__name__}).",
            stacklevel=3,
        )
        self._refusal = f"resuming at block {layer} had changed the logits"
        return False

    def read(
        self,
        resolved: Sites,
        batch: Batch,
        site_columns: dict[Site, SiteColumns],
        *,
        grad: bool = False,
    ) -> Activations:
        """{site: Tensor[batch, position, width]} of the batch, with the arguments of `observe`."""
        # These are not kept by token: attention weights are as wide as their batch is long, and an
        # arbitrary module may have positions of its own.
        whole = any(site.component in (None, "attention_weight") for site in site_columns)
        kept = not grad and not whole and self._under is None
        if not kept or self.refuses(resolved.network, batch) is not None:
            return observe(resolved, batch, site_columns, grad=grad)

        sites = {site: replace(site, position=None) for site in site_columns}
        if not set(sites.values()).isdisjoint(map(_before, self.layers)):
            # A prompt that is a source in this run is a base in others of the sweep: it is run
            # whole now, once for both.
            self._run_whole(batch, self.layers)
        self._run_missing(batch, sites.values())

        activations = {}
        prompts = _prompts(batch)
        for site, selected in site_columns.items():
            values = [self._contents[sites[site], prompt] for prompt in prompts]
            n = batch.tokens.shape[1]
            # Any other index stands for every column.
            if isinstance(selected.index, Tensor):
                n = selected.index.shape[1]
                for i, row in enumerate(selected.index.cpu()):
                    values[i] = values[i][row[row != IGNORED]]
            activations[site] = _stacked(values, n, batch.tokens.device)
        return Activations(activations)

    def prefix(
        self, network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor
    ) -> Prefix:
        """What a run from block `layer` on, over the columns `first` to `stop`, finds already done.

        Only to be called where `refuses` is None.

        Arguments:
            first, stop: Tensor[batch], columns of the batch.
        """
        prompts, starts = _prompts(batch), first.tolist()
        # Where no block runs, nothing attends to earlier tokens.
        n_blocks = len(blocks_of(network).blocks) - layer
        longest = max(starts) if n_blocks else 0
        self._run_whole(batch, {layer}, cached=longest > 0)

        hidden = cache = None
        # Before the first block there is no stream to put in: it embeds the tokens itself.
        if layer:
            rows = []
            for prompt, start, end in zip(prompts, starts, stop.tolist(), strict=True):
                # A span may end behind its prompt, where another in the batch is longer.
                rows.append(self._contents[_before(layer), prompt][start:end])
            hidden = _stacked(rows, int((stop - first).max()), first.device)

        if longest:
            like = self._contents[None, prompts[0]]
            # [block, 2, batch, head, column, width], right-aligned and zero before.
            n_heads, width = like.shape[2], like.shape[-1]
            shape = (n_blocks, 2, len(prompts), n_heads, longest, width)
            cache = like.new_zeros(shape, device=first.device)
            for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
                values = self._contents[None, prompt][-n_blocks:, ..., :start, :]
                cache[:, :, i, :, longest - start :] = values
        return Prefix(hidden, cache)

    def fill(self, batches: Iterable[Inputs]) -> None:
        """Run every prompt of the batches that is not kept, once for all `layers`.

        Raises ValueError without `layers`, and where runs cannot resume.
        """
        if not self.layers:
            raise ValueError(
                "Nothing says what to keep: make the store with `layers`, the blocks at which "
                "runs will resume."
            )
        for inputs in progress(list(batches), "Running prompts"):
            batch = prepare(self._network, inputs)
            why = self.refuses(self._network, batch)
            if why is not None:
                raise ValueError(f"Prompts cannot be run up front: {why}.")
            self._run_whole(batch, self.layers)

    def _run_whole(self, batch: Batch, layers: Iterable[int], *, cached: bool = True) -> None:
        """Run the prompts that lack what runs from these blocks on, or `self.layers`, need.

        They need the residual stream before each block and, where `cached`, keys and values.
        """
        layers = {*layers, *self.layers}
        n_blocks = 0
        if cached or self.layers:
            n_blocks = len(blocks_of(self._network).blocks) - min(layers)
        sites = list(filter(None, map(_before, sorted(layers))))
        self._run_missing(batch, sites, n_blocks)

    def _run_missing(self, batch: Batch, sites: Iterable[Site], n_blocks: int = 0) -> None:
        """Run, once each, the prompts of which something is missing, and keep it.

        Arguments:
            sites: where activations are read, at every column: others may read elsewhere.
            n_blocks: how many of the last blocks need keys and values.
        """
        prompts = _prompts(batch)
        needs: dict[Site | None, int] = dict.fromkeys(sites, 1) | {None: n_blocks}
        if not self._contents.missing(prompts, needs):
            return
        # Other processes will read what is put on the shelf.
        if self._shelf is not None and self._snapshot.sample_changed():
            self._renew("its weights")

        with self._contents.filling():
            rows = self._contents.missing(prompts, needs)
            if not rows:
                return
            kwargs = {key: value[rows] for key, value in batch.kwargs.items()}
            part = Batch((), kwargs)
            steps = torch.arange(part.tokens.shape[1], device=part.tokens.device)
            steps = steps.expand(part.size, -1)
            site_columns = {site: SiteColumns(site, steps) for site in sites}
            cache = DynamicCache()
            if n_blocks:
                # transformers fills the cache with keys and values as the blocks run.
                part.kwargs.update(past_key_values=cache, use_cache=True)
            under = nullcontext() if self._under is None else self._under(part)
            with under:
                activations = observe(self._resolved, part, site_columns, stop_early=not n_blocks)

            new: dict[Key, Tensor] = {}
            for site, activation in activations.items():
                for i, values in zip(rows, activation, strict=True):
                    new[site, prompts[i]] = values[: len(prompts[i])]
            if n_blocks:
                keys_values = stacked_cache(cache, -n_blocks, part.device)
                for n, i in enumerate(rows):
                    # A run resumes at the last column at the latest, and runs that one itself.
                    last = len(prompts[i]) - 1
                    new[None, prompts[i]] = keys_values[:, :, n, :, :last]
            self._contents.add(new)

    def _renew(self, change: str | None) -> None:
        """Forget everything where something has changed."""
        if change is not None:
            log.info(
                "The network has changed (%s): what was kept of its runs is forgotten.", change
            )
            self._begin()

    def _begin(self) -> None:
        """Begin with nothing kept but what is on the network's shelf."""
        self._snapshot = NetworkSnapshot(self._network)
        if self._shelf is None:
            self._contents = StoreContents(self._budget, self._folder)
        else:
            folder = self._shelf / self._snapshot.run_fingerprint()
            self._contents = StoreContents(self._budget, folder, self._limit)
        # Modules may have been replaced, and comparisons were made before the change.
        self._resolved = Sites(self._network)
        self._trusted: set[tuple[int, bool]] = set()


class StoreContents(dict[Key, Tensor]):
    """Tensors by what they are of: in memory up to a budget, and in memory-mapped shards.

    A shard is a safetensors file. A tensor's name in it is its key, as JSON. In a folder that is
    not shared, shards hold what is beyond the budget. They lose their name once they are mapped, so
    they vanish with the last tensor in them, also when the process is killed. In a shared folder,
    shards hold everything, and appear by a rename: whole or not at all.

    Arguments:
        limit: how many bytes a shared folder may take, together with the folders beside it; None
            for a folder that is not shared.
    """

    def __init__(self, budget: int, folder: Path, limit: int | None = None):
        super().__init__()
        self._budget, self._folder, self._limit = budget, folder, limit
        # The bytes of each tensor in memory; 0 where it is mapped.
        self._sizes: dict[Key, int] = {}
        self._known_shards: set[Path] = set()
        if limit is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._map_new()

    def missing(self, prompts: list[PromptTokens], needs: Mapping[Site | None, int]) -> list[int]:
        """The numbers of the prompts of which a tensor is missing or too short; each prompt once.

        Arguments:
            needs: the sites (None: keys and values), and how long the tensors have to be.
        """
        numbers = []
        for prompt, number in {prompt: n for n, prompt in enumerate(prompts)}.items():
            if any(len(self.get((site, prompt), ())) < needs[site] for site in needs):
                numbers.append(number)
        return numbers

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within the context no other process fills the folder, and what others left is mapped."""
        if self._limit is None:
            yield
            return
        with FileLock(self._folder / ".lock"):
            self._map_new()
            yield

    def add(self, new: dict[Key, Tensor]) -> None:
        """Keep copies of tensors.

        Raises OSError where there is no space for a shard.
        """
        copies, sizes = {}, {}
        for key, tensor in self._longer(new).items():
            copies[key] = tensor.clone(memory_format=torch.contiguous_format)
            sizes[key] = tensor.nbytes
        fits = sum(self._sizes.values()) + sum(sizes.values()) <= self._budget
        if self._limit is not None or not fits:
            mapped = self._shard(copies)
            if not fits:
                copies, sizes = mapped, dict.fromkeys(mapped, 0)
        self.update(copies)
        self._sizes.update(sizes)

    def _longer(self, new: dict[Key, Tensor]) -> dict[Key, Tensor]:
        """Those that are not kept yet, and keys and values of more blocks than those that are.

        What is kept of a prompt only grows. Otherwise edits that take turns would run it again and
        again.
        """
        longer = {}
        for key, tensor in new.items():
            if len(tensor) > len(self.get(key, ())):
                longer[key] = tensor
        return longer

    def _shard(self, tensors: dict[Key, Tensor]) -> dict[Key, Tensor]:
        """The tensors, memory-mapped from a new shard."""
        content = save({json.dumps(key, default=asdict): t.cpu() for key, t in tensors.items()})
        try:
            if self._limit is None:
                with tempfile.NamedTemporaryFile(prefix="iit-", dir=self._folder) as file:
                    file.write(content)
                    file.flush()
                    return _mapped(Path(file.name))
            # Only the holder of the lock writes here. What a killed one has left is overwritten.
            writing = self._folder / ".writing"
            writing.write_bytes(content)
            shard = writing.rename(self._folder / SHARDS.replace("*", uuid4().hex))
        except OSError as error:
            raise OSError(
                error.errno,
                f"Beyond its budget of {self._budget} bytes the activation store wanted "
                f"{len(content)} more of {self._folder} ({error.strerror}). Give it another folder "
                "(store.folder=…, store.shelf=…), or more memory (store.budget=…).",
            ) from error

        self._known_shards.add(shard)
        mapped = _mapped(shard)
        self._delete_oldest(self._limit)
        return mapped

    def _map_new(self) -> None:
        """Map the shards that other processes have left since the last time."""
        for shard in set(self._folder.glob(SHARDS)) - self._known_shards:
            self._known_shards.add(shard)
            try:
                new = self._longer(_mapped(shard))
            except FileNotFoundError:
                # Another process has deleted it.
                continue
            except SafetensorError:
                log.warning("%s is damaged and removed; what it held is run again.", shard)
                shard.unlink(missing_ok=True)
                continue
            self.update(new)
            self._sizes.update(dict.fromkeys(new, 0))

    def _delete_oldest(self, limit: int) -> None:
        """Delete the oldest shards beyond the limit, of this network and of others.

        Tensors that are mapped stay, wherever the system lets a file without a name be read.
        """
        shards = []
        for shard in self._folder.parent.glob(f"*/{SHARDS}"):
            # Another process may delete at the same time.
            with suppress(FileNotFoundError):
                stat = shard.stat()
                shards.append((stat.st_mtime_ns, stat.st_size, shard))
        n_bytes = 0
        for _, size, shard in sorted(shards, reverse=True):
            n_bytes += size
            if n_bytes > limit:
                shard.unlink(missing_ok=True)


def _mapped(shard: Path) -> dict[Key, Tensor]:
    """The tensors of a shard, memory-mapped."""
    tensors = {}
    with safe_open(shard, "pt") as file:
        for name in file.keys():  # noqa: SIM118 — a file is no mapping
            site, prompt = json.loads(name)
            tensors[site and Site(**site), tuple(prompt)] = file.get_tensor(name)
    return tensors


def _before(layer: int) -> Site | None:
    """Where the residual stream before a block is read; None for the first block."""
    return Site("block_output", layer=layer - 1) if layer else None


def _prompts(batch: Batch) -> list[PromptTokens]:
    """The real tokens of each example."""
    ids = batch.tokens.tolist()
    mask = batch.kwargs.get("attention_mask")
    if mask is None:
        return list(map(tuple, ids))
    return [tuple(row[:n]) for row, n in zip(ids, mask.sum(1).tolist(), strict=True)]


def _stacked(rows: list[Tensor], n: int, device: torch.device) -> Tensor:
    """Tensor[batch, position, width] of n positions.

    Arguments:
        rows: Tensor[position, width] of each example. One that has fewer gets zeros.
    """
    # What is mapped lies on the CPU.
    stacked = pad_sequence([row.to(device) for row in rows], batch_first=True)
    return pad(stacked, (0, 0, 0, n - stacked.shape[1]))
