"""What runs of one network left, on disk: for the other jobs of a sweep, and for later
processes.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iit.network.cache import checksum
from iit.site import Site

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One tensor, and what it is of.

    site: without its position, and values are Tensor[column, width]; None of a cache: Tensor[block,
    2, head, seq, width]. prompt: the tokens. index: the columns of the site; the first block of a
    cache.
    """

    site: Site | None
    prompt: tuple[int, ...]
    index: tuple[int, ...]
    values: Tensor


class Shelf:
    """Records of one network's runs in `folder`; those of others lie beside them.

    A file holds the records of one run and is named by the checksum of its content. It appears
    whole or not at all.

    network: what tells it from every other (`Watched.identity`).
    """

    def __init__(self, folder: str | Path, network: str):
        self._network = network
        self.folder = Path(folder).expanduser() / network[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, records: Iterable[Record]) -> None:
        """Write a file of records."""
        records = list(records)
        if not records:
            return
        told = [
            (record.site and asdict(record.site), record.prompt, record.index) for record in records
        ]
        tensors = {
            str(n): record.values.detach().cpu().contiguous() for n, record in enumerate(records)
        }
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        os.close(handle)
        temporary = Path(name)
        try:
            save_file(tensors, temporary, {"network": self._network, "records": json.dumps(told)})
            temporary.replace(self.folder / f"{checksum(temporary)}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Everything on the shelf, memory-mapped; damaged files are removed, and what this did not
        write is left alone.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                if checksum(path) != path.stem:
                    log.warning("%s is damaged and removed; what it held is run again.", path)
                    path.unlink(missing_ok=True)
                    continue
                with safe_open(path, "pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("network") != self._network:
                        raise ValueError("it was made with another network")
                    rows = json.loads(metadata["records"])
                    records = [
                        Record(
                            site and Site(**site),
                            tuple(prompt),
                            tuple(index),
                            file.get_tensor(str(n)),
                        )
                        for n, (site, prompt, index) in enumerate(rows)
                    ]
            # OSError: another process removed it
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is not read: %s. What it held is run again.", path, error)
                continue
            yield from records
