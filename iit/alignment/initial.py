"""Where trained bases begin, and what fixed ones are made of: activations of the training bases."""

from typing import Any

import torch
from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.intervened import Edit
from iit.intervened.batch import prepare
from iit.intervened.positions import columns, counts
from iit.intervention import Frame, PrincipalComponents
from iit.intervention.basis import Basis, leading

STARTS = ("random", "pca", "difference_of_means")


def initialise(
    alignment: Alignment, pairs: Pairs, start: str = "random", *, batch_size: int = 64
) -> None:
    """Set the alignment's bases by the activations of the training pairs' bases at their sites.

    start: where trained frames begin. "random": as they were made; "pca": the leading principal
        components; "difference_of_means": the leading directions in which the means of the
        activations differ between the values of the variable (of an edit with blocks: of each
        variable, in its own block), and random ones beyond them (arXiv 2312.03813 steers along such
        differences).

    Principal components that are fixed are fitted in any case, unless they were. Raises ValueError
    for an unknown way, and for differences of means where the pairs were not sampled from a causal
    model.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is none of {list(STARTS)}.")
    for key, edit in alignment.edits.items():
        frames, components = _parts(edit.intervention.basis)
        components = [basis for basis in components if not bool(basis.fitted)]
        if start == "random":
            frames = []
        if not frames and not components:
            continue
        found = _activations(alignment, edit, pairs, batch_size)
        every = torch.cat(found)
        for basis in components:
            basis.fit(every)
        for frame in frames:
            frame.start(
                leading(every, frame.rank or 1)
                if start == "pca"
                else _between(key, edit, found, pairs, frame)
            )


def _parts(basis: Basis) -> tuple[list[Frame], list[PrincipalComponents]]:
    """The frames and the principal components that a basis is made of."""
    modules = list(basis.modules())
    return [m for m in modules if isinstance(m, Frame)], [
        m for m in modules if isinstance(m, PrincipalComponents)
    ]


def _activations(alignment: Alignment, edit: Edit, pairs: Pairs, batch_size: int) -> list[Tensor]:
    """Of each training pair's base Tensor[position, width], at the edit's sites; of a joint edit
    [1, positions·width].
    """
    network = alignment.studied
    if network is None:
        raise ValueError(
            "Bases are set by activations of the pairs: make the alignment with the network from "
            "iit.load_network."
        )
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    found: dict[int, Tensor] = {}
    for batch in encoded.batches(batch_size):
        prepared = prepare(network.model, batch["base"]).at_answer(network.model, edit.sites)
        places = {site: columns(site, prepared) for site in edit.sites}
        seen = alignment.read(prepared, places)
        lengths = {site: counts(place, prepared) for site, place in places.items()}
        for number, row in enumerate(batch["row"].tolist()):
            stops = {
                site: None if length is None else int(length[number])
                for site, length in lengths.items()
            }
            here = torch.cat([seen[site][number, :stop] for site, stop in stops.items()]).float()
            found[row] = here.reshape(1, -1) if edit.joint else here
    return [found[row] for row in range(len(found))]


def _between(key: Any, edit: Edit, found: list[Tensor], pairs: Pairs, frame: Frame) -> Tensor:
    """Tensor[width, rank]: for each variable the leading directions between the means of its
    values, then random ones.
    """
    if pairs.values is None:
        raise ValueError(
            "start=difference_of_means needs the variable's values: sample the pairs from a "
            "causal model."
        )
    made = found[0].new_zeros(found[0].shape[-1], 0)
    for variable, size in (edit.intervention.block_sizes or {key: frame.rank or 1}).items():
        values = pairs.values[variable]
        # In the order of the pairs: that of a set of texts differs from process to process.
        each = [
            torch.cat([x for x, w in zip(found, values, strict=True) if w == v]).mean(0)
            for v in dict.fromkeys(values)
        ]
        means = torch.stack(each)
        _, strength, across = torch.linalg.svd(means - means.mean(0), full_matrices=False)
        directions = across[strength > 1e-5 * strength.max()][:size].T
        beyond = torch.randn(len(made), size).to(made)  # drawn on the CPU: the same on every device
        made = torch.linalg.qr(torch.cat([made, directions, beyond], 1))[0][
            :, : made.shape[1] + size
        ]
    return made
