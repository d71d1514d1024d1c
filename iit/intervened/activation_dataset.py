"""Activations of a whole dataset, in memory or in a folder.

A folder holds `index.json` and safetensors, which are read when they are looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iit.intervened.saving import check_network, read_json, site_to_json, write_json
from iit.intervened.stream import NAME
from iit.network import Network
from iit.site import Site

FORMAT = "iit.captured/1"
INDEX, OFFSETS = "index.json", "offsets.safetensors"


@final
@dataclass(frozen=True, eq=False)
class Captured(Mapping[Site, Tensor]):
    """{site: Tensor[row, width]}: the rows of all examples, one after the other, without padding.

    A row is one position of one example: examples in the order they came, positions in the site's
    order. Those of example i at a site are `captured[site][o[i]:o[i + 1]]` with `o =
    captured.offsets[site]`. Where a site has one position, row i is example i.

    Arguments:
        rows: what the mapping shows. Loaded from a folder they are memory-mapped: only what is
            looked at is read.
        offsets: {site: LongTensor[n_examples + 1]}.
        network: what tells the network from others, as in an intervened model's `config.json`.
        inputs_sha256: the fingerprint of the inputs. It covers every example's inputs without
            padding, and its roles that the sites name. It is equal for equal examples, however
            they were batched.
    """

    rows: Mapping[Site, Tensor]
    offsets: Mapping[Site, Tensor]
    network: Mapping[str, Any]
    inputs_sha256: str

    def __getitem__(self, site: Site) -> Float[Tensor, "row width"]:
        try:
            return self.rows[site]
        except KeyError:
            raise KeyError(
                f"{site} was not captured; the sites are {', '.join(map(str, self.rows))}."
            ) from None

    def __iter__(self) -> Iterator[Site]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        shapes = "\n  ".join(f"{site}: {list(rows.shape)}" for site, rows in self.rows.items())
        return f"Captured, {self.n_examples} examples\n  {shapes}"

    @property
    def n_examples(self) -> int:
        """How many examples were run."""
        return len(next(iter(self.offsets.values()))) - 1

    def example(self, site: Site, number: int) -> Float[Tensor, "position width"]:
        """One example's rows at a site.

        Raises IndexError outside of 0 … n_examples − 1.
        """
        if not 0 <= number < self.n_examples:
            raise IndexError(
                f"There is no example {number}; there are {self.n_examples}, counted from 0."
            )
        rows, offsets = self[site], self.offsets[site]
        # A view: memory-mapped rows are read when they are looked at.
        return rows[int(offsets[number]) : int(offsets[number + 1])]

    @classmethod
    def load(cls, folder: str | Path, network: Network | nn.Module | None = None) -> "Captured":
        """Load what `capture_dataset` wrote to a folder.

        Arguments:
            network: where it is given, it has to be the network that was captured.

        Raises FileNotFoundError where there is no capture, and ValueError for a damaged one and for
        another network.
        """
        folder = Path(folder)
        # The index is written last.
        index = read_json(folder / INDEX, "finished capture")
        try:
            if index.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            rows, offsets = {}, {}
            for entry in index["sites"]:
                site = Site(**entry["site"])
                rows[site] = mapped(folder / entry["file"])
                offsets[site] = mapped(folder / OFFSETS, entry["file"])

                # The files have to be those that the index was written with.
                shape, n_examples = entry["shape"], len(offsets[site]) - 1
                # The last offset is the number of rows.
                n_rows = int(offsets[site][-1])
                measured = [*rows[site].shape, rows[site].dtype, n_examples, n_rows]
                expected = [*shape, index["dtype"], index["n_examples"], shape[0]]
                if list(map(str, measured)) != list(map(str, expected)):
                    raise ValueError(f"{entry['file']} is not the file it was written with")
            captured = cls(rows, offsets, index["network"], index["inputs_sha256"])
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise ValueError(f"The capture in {folder} is damaged or altered: {error}.") from error

        if network is not None:
            check_network(captured.network, network)
        return captured


def write_index(folder: Path, captured: Captured, files: Mapping[Site, str]) -> None:
    """Write what stands beside the files of rows: the offsets, and the index.

    The index makes the folder a finished capture.
    """
    sites, offsets = [], {}
    for site, file in files.items():
        shape = list(captured[site].shape)
        sites.append({"site": site_to_json(site), "file": file, "shape": shape})
        offsets[file] = captured.offsets[site]
    save_file(offsets, folder / OFFSETS)
    index = {
        "format": FORMAT,
        "network": dict(captured.network),
        "n_examples": captured.n_examples,
        "dtype": str(next(iter(captured.values())).dtype),
        "inputs_sha256": captured.inputs_sha256,
        "sites": sites,
    }
    write_json(folder / INDEX, index)


def mapped(path: Path, name: str = NAME) -> Tensor:
    """A tensor of a safetensors file, memory-mapped."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
