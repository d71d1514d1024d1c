"""What runs of one network left, on disk: for the other jobs of a sweep, and for later processes."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iit.network import fingerprint
from iit.network.cache import sha256

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One tensor, and what it is of.

    what: a site without its position, or "cache". prompt: the tokens. index: the columns of the site; the first block of a cache.
    """

    what: str
    prompt: tuple[int, ...]
    index: tuple[int, ...]
    values: Tensor


class Shelf:
    """Records of one network's runs in `folder`; other networks', and other versions' of the libraries, lie beside them.

    A file holds the records of one run and is named by the checksum of its content. It appears whole or not at all.
    """

    def __init__(self, folder: str | Path, network: nn.Module):
        self._network = _identity(network)
        self.folder = Path(folder).expanduser() / self._network[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, records: Iterable[Record]) -> None:
        """Write a file of records."""
        records = list(records)
        if not records:
            return
        told = [(record.what, record.prompt, record.index) for record in records]
        tensors = {str(n): record.values.detach().cpu().contiguous() for n, record in enumerate(records)}
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        os.close(handle)
        temporary = Path(name)
        try:
            save_file(tensors, temporary, {"network": self._network, "records": json.dumps(told)})
            temporary.replace(self.folder / f"{sha256(temporary)}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Everything on the shelf, memory-mapped; damaged files are removed, and what is another network's is left alone."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if sha256(path) != path.stem:
                log.warning("%s is damaged and removed; what it held is run again.", path)
                path.unlink(missing_ok=True)
                continue
            try:
                with safe_open(path, "pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("network") != self._network:
                        raise ValueError("it was made with another network")
                    for n, (what, prompt, index) in enumerate(json.loads(metadata["records"])):
                        yield Record(what, tuple(prompt), tuple(index), file.get_tensor(str(n)))
            except (SafetensorError, ValueError, KeyError) as error:
                log.warning("%s is not read: %s.", path, error)


def _identity(network: nn.Module) -> str:
    """sha256 over everything that decides what a run computes: weights, all of them, configuration, device and libraries."""
    digest = hashlib.sha256(fingerprint(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        # The fingerprint reads few values of a tensor; a sum over its bytes notices a change of any one.
        content = tensor.detach().contiguous().view(-1).view(torch.uint8)
        digest.update(f"{name} {int(content.sum(dtype=torch.int64))}".encode())
    config = getattr(network, "config", None)
    told = [type(network).__qualname__, "" if config is None else config.to_json_string()]
    told.append(str(getattr(config, "_attn_implementation", None)))
    told.append(next((p.device.type for p in network.parameters()), "cpu"))
    told += [version(package) for package in ("torch", "transformers")]
    digest.update(json.dumps(told).encode())
    return digest.hexdigest()
