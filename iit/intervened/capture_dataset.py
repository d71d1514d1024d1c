"""`capture_dataset`: the activations of many batches, streamed to memory or to a folder."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.batch import IGNORED, Batch, Inputs
from iit.intervened.activation_dataset import Captured, mapped, write_index
from iit.intervened.edit import as_sites
from iit.intervened.folder import written_folder
from iit.intervened.intervened_model import IntervenedModel
from iit.intervened.observe import observe
from iit.intervened.positions import SiteColumns, columns
from iit.intervened.saving import describe_network
from iit.intervened.stream import DTYPE_NAMES, RowFile
from iit.network import Network
from iit.network.inputs import prepare
from iit.progress import progress
from iit.site import Site, Sites


def capture_dataset(
    network: Network | nn.Module,
    batches: Iterable[Inputs],
    sites: Site | Sequence[Site],
    *,
    folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Captured:
    """{site: Tensor[row, width]} of all batches, on the CPU.

    Rows are positions of examples, without padding (see `Captured`).

    Arguments:
        batches: anything that yields batches as `capture` takes them: `lm.batches(texts)`, a
            DataLoader, `(lm.encode(rows["text"]) for rows in dataset.iter(64))`. One is held at a
            time.
        folder: a folder to write to instead of memory, which then holds one batch, and 8 bytes an
            example for each site. The folder appears whole, when all is done;
            `Captured.load(folder)` reads it.
        dtype: what the rows are kept as; by default as the network gives them.

    Raises ValueError before anything runs: for sites the network lacks, attention weights (their
    width is a batch's length), an intervened model and a dtype that is not floating. Raises
    FileExistsError, also before, for a folder that is not empty. On the way, raises ValueError as
    `capture` does, and where there is no batch at all.
    """
    sites = tuple(dict.fromkeys(as_sites(sites)))
    _check(network, sites, dtype)
    module = network.model if isinstance(network, Network) else network

    # Sites that the network lacks are found out before anything runs.
    resolved = Sites(module, sites)
    description = describe_network(network)
    hasher = hashlib.sha256()

    # Arrays, not tensors. Small tensors that stay, one for each batch, would leave holes in the
    # heap that the next batch's large ones do not fit in.
    ends = {site: array("q", [0]) for site in sites}
    widths: dict[Site, int] = {}
    with ExitStack() as stack:
        temporary = None
        if folder is not None:
            # A capture replaces nothing.
            temporary = stack.enter_context(written_folder(folder, os.listdir))
        names: dict[Site, str] = {}
        # A list in memory or a file: both have `append`.
        sinks: dict[Site, Any] = {}
        for number, site in enumerate(sites):
            names[site], sinks[site] = f"{number}.safetensors", []
            if temporary is not None:
                file = stack.enter_context((temporary / names[site]).open("wb"))
                sinks[site] = RowFile(file)
        for inputs in progress(batches, "Capturing batches"):
            batch = prepare(module, inputs)
            site_columns = {site: columns(site, batch) for site in sites}
            for site, (values, lengths) in _rows(batch, site_columns, resolved, dtype).items():
                width = values.shape[1]
                if widths.setdefault(site, width) != width:
                    raise ValueError(
                        f"Site {site} has width {width} in one batch and {widths[site]} in those "
                        "before."
                    )
                # The last end so far is the offset of the batch's first example.
                ends[site].extend(accumulate(lengths, initial=ends[site].pop()))
                sinks[site].append(values)
            _hash_examples(hasher, batch, site_columns)

        if len(ends[sites[0]]) == 1:
            raise ValueError(
                "There was no batch to capture: the iterable of batches is empty, or "
                "was read before."
            )

        offsets = {site: torch.tensor(ends[site], dtype=torch.long) for site in sites}
        rows: dict[Site, Tensor] = {}
        for site in sites:
            # Popped, so that no more than one site's rows are in memory twice.
            sink = sinks.pop(site)
            if temporary is None:
                rows[site] = torch.cat(sink)
                continue
            # The header makes it a safetensors file.
            sink.finish()
            rows[site] = mapped(temporary / names[site])
        captured = Captured(rows, offsets, description, hasher.hexdigest())
        if temporary is None:
            return captured
        write_index(temporary, captured, names)

    # The folder has taken its place by now; the rows are read from there.
    assert folder is not None
    return Captured.load(folder)


def _check(network: Any, sites: Sequence[Site], dtype: torch.dtype | None) -> None:
    if isinstance(network, IntervenedModel):
        raise ValueError(
            "A dataset is captured from a network as it is; for edited runs call `capture` "
            "on each batch."
        )
    if not sites:
        raise ValueError("There is no site to capture; give at least one.")
    for site in sites:
        if site.component == "attention_weight":
            raise ValueError(
                f"{site} is as wide as its batch is long: rows of different batches do "
                "not fit together."
            )
    if dtype is not None and dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Activations are kept as one of {', '.join(map(str, DTYPE_NAMES))}; got {dtype}."
        )


def _rows(
    batch: Batch,
    site_columns: dict[Site, SiteColumns],
    resolved: Sites,
    dtype: torch.dtype | None,
) -> dict[Site, tuple[Float[Tensor, "row width"], list[int]]]:
    """The rows of one batch, on the CPU, and how many each example has."""
    rows = {}
    for site, activation in observe(resolved, batch, site_columns).items():
        index = site_columns[site].index
        present = activation.new_ones(activation.shape[:2], dtype=torch.bool)
        # Absent positions are zeros in an activation, and are no rows. A module may have positions
        # of its own, of which all are present.
        if index is not None and index.shape == present.shape:
            present = index != IGNORED
        values = activation[present].to("cpu", dtype)
        rows[site] = (values, present.sum(1).tolist())
    return rows


def _hash_examples(hasher: Any, batch: Batch, site_columns: dict[Site, SiteColumns]) -> None:
    """Take in each example: its inputs without padding, and its roles."""
    # Positional inputs are named by their number.
    inputs = (*enumerate(batch.args), *sorted(batch.kwargs.items()))
    tensors, roles = {}, {}
    for name, value in inputs:
        if isinstance(value, Tensor):
            tensors[name] = value.cpu()
    for site, selected in site_columns.items():
        if isinstance(site.position, str) and selected.index is not None:
            roles[site.position] = selected.index.cpu()
    lengths = [None] * batch.size
    if batch.lengths is not None:
        lengths = batch.lengths.tolist()

    for number, length in enumerate(lengths):
        for name, value in tensors.items():
            example = value[number]
            if length is not None and value.shape[:2] == batch.tokens.shape[:2]:
                # Without padding the mask is all ones.
                if name == "attention_mask":
                    continue
                example = example[:length]
            # Name, shape and dtype tell apart inputs whose bytes are equal.
            hasher.update(f"{name} {list(example.shape)} {example.dtype} ".encode())
            # The bytes themselves: numpy has no bfloat16.
            as_bytes = example.reshape(-1).contiguous().view(torch.uint8)
            hasher.update(as_bytes.numpy())
        for role, index in roles.items():
            present = index[number][index[number] != IGNORED]
            hasher.update(f"{role} {present.tolist()} ".encode())
