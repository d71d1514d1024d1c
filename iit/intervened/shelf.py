"""What runs of one network left, on disk: for other jobs of a sweep and for later processes."""

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
    """One tensor, and what it is of: activations at a site, or the keys and values of a cache.

    site: the site without its position; None for a cache.
    prompt: its tokens.
    index: the columns at the site; for a cache, its first block.
    values: Tensor[column, width] at a site; Tensor[block, 2, head, seq, width] of a cache.
    """

    site: Site | None
    prompt: tuple[int, ...]
    index: tuple[int, ...]
    values: Tensor


class Shelf:
    """Records of one network's runs, in a folder beside those of other networks.

    A file holds the records that were written together, and is named by the checksum of its
    content. It appears whole or not at all.

    Arguments:
        folder: where the networks' folders lie.
        fingerprint: the network's own, `NetworkSnapshot.run_fingerprint`.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self._fingerprint = fingerprint
        # 16 characters name the folder; each file holds the whole fingerprint.
        self.folder = Path(folder).expanduser() / fingerprint[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, records: Iterable[Record]) -> None:
        """Write a file of records."""
        records = list(records)
        if not records:
            return
        keys = [
            (record.site and asdict(record.site), record.prompt, record.index) for record in records
        ]
        tensors = {
            str(n): record.values.detach().cpu().contiguous() for n, record in enumerate(records)
        }

        # `records` does not read a name without the suffix.
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        os.close(handle)
        temporary = Path(name)
        try:
            save_file(
                tensors, temporary, {"network": self._fingerprint, "records": json.dumps(keys)}
            )
            # Two processes that wrote the same content write the same name.
            temporary.replace(self.folder / f"{checksum(temporary)}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Everything on the shelf, memory-mapped.

        A file whose content does not match its name is damaged, and is removed. A file of another
        network, or one that cannot be read, is left alone.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                if checksum(path) != path.stem:
                    log.warning("%s is damaged and removed; what it held is run again.", path)
                    path.unlink(missing_ok=True)
                    continue

                with safe_open(path, "pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("network") != self._fingerprint:
                        raise ValueError("it was made with another network")
                    rows = json.loads(metadata["records"])
                    records = [
                        Record(
                            # None stays None: a cache has no site.
                            site and Site(**site),
                            tuple(prompt),
                            tuple(index),
                            file.get_tensor(str(n)),
                        )
                        for n, (site, prompt, index) in enumerate(rows)
                    ]
            # An OSError means that another process has removed the file.
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is not read: %s. What it held is run again.", path, error)
                continue
            yield from records
