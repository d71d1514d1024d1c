"""Where trained frames begin, and what principal components are fitted to.

Both come from activations of the network on the base prompts of the training pairs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import unpad_sequence

from iit.alignment.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.intervened import Edit
from iit.intervened.positions import columns, counts, prepare_at
from iit.intervention import Frame, PrincipalComponents
from iit.intervention.basis import leading

STARTS = ("random", "pca", "difference_of_means")


def initialise(
    alignment: Alignment, pairs: Pairs, start: str = "random", *, batch_size: int = 64
) -> None:
    """Set an alignment's bases from activations of the training pairs' base prompts.

    Principal components are fitted in any case, unless they have been.

    Arguments:
        start: where trained frames begin.
            "random": as they were made.
            "pca": at the leading principal components.
            "difference_of_means": at the leading directions in which the mean activations differ
            between the variable's values, with random directions beyond them. In an edit with
            blocks each variable has its own block.
        batch_size: prompts a run.

    Raises:
        ValueError: for an unknown `start`; for differences of means where the pairs were not
            sampled from a causal model; for an alignment without a `LanguageModel` or `Classifier`.

    References:
        arXiv 2312.03813 steers along such differences.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is none of {list(STARTS)}.")
    for key, edit in alignment.edits.items():
        # A basis may be made of others.
        bases: list[Any] = list(edit.intervention.basis.modules())
        components = [b for b in bases if isinstance(b, PrincipalComponents) and not b.fitted]
        frames = [b for b in bases if isinstance(b, Frame) and start != "random"]
        if not frames and not components:
            continue
        activations = _activations(alignment, edit, pairs, batch_size)
        # Tensor[n, width], over the positions of all prompts.
        all_activations = torch.cat(activations)
        for basis in components:
            basis.fit(all_activations)
        for frame in frames:
            rank = frame.rank or 1
            if start == "pca":
                frame.start(leading(all_activations, rank))
            else:
                sizes = edit.intervention.block_sizes or {key: rank}
                frame.start(_difference_directions(sizes, activations, pairs))


def _activations(alignment: Alignment, edit: Edit, pairs: Pairs, batch_size: int) -> list[Tensor]:
    """The activations of each training pair's base at the edit's sites: [Tensor[position, width]].

    The activations of a joint edit are one row, Tensor[1, positions · width]. The list is in the
    order of the pairs.
    """
    network = alignment.studied
    if network is None:
        raise ValueError(
            "Activations of the pairs set the bases, and a bare module cannot encode pairs: make "
            "the alignment with a LanguageModel (iit.load_network) or a Classifier."
        )
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    by_row: dict[int, Tensor] = {}
    for batch in encoded.batches(batch_size):
        prepared = prepare_at(network.model, batch["base"], edit.sites)
        site_columns = {site: columns(site, prepared) for site in edit.sites}
        captured = alignment.read(prepared, site_columns)
        by_site = []
        for site, columns_of_site in site_columns.items():
            activation = captured[site].float()
            lengths = counts(columns_of_site, prepared)
            if lengths is not None:
                # Beyond its own length an example's positions are padding.
                activation = unpad_sequence(activation, lengths, batch_first=True)
            by_site.append(activation)
        for row, *parts in zip(batch["row"].tolist(), *by_site, strict=True):
            vectors = torch.cat(parts)
            if edit.joint:
                vectors = vectors.reshape(1, -1)
            by_row[row] = vectors
    return [by_row[row] for row in range(len(by_row))]


def _difference_directions(
    sizes: Mapping[Any, int], activations: list[Tensor], pairs: Pairs
) -> Tensor:
    """For each variable: the leading directions between the means of its values, then random ones.

    Arguments:
        sizes: {variable: number of directions}.
        activations: [Tensor[position, width]], those of each training pair's base.

    Returns Tensor[width, rank] with orthonormal columns, one block of columns after another.
    """
    if pairs.values is None:
        raise ValueError(
            "start=difference_of_means needs the variable's values: sample the pairs from "
            "a causal model."
        )
    vectors = activations[0].new_zeros(activations[0].shape[-1], 0)
    for variable, size in sizes.items():
        # The values are in the order of the pairs: the order of a set of texts differs from process
        # to process.
        by_value: dict[Any, list[Tensor]] = {}
        for value, activation in zip(pairs.values[variable], activations, strict=True):
            by_value.setdefault(value, []).append(activation)
        means = torch.stack([torch.cat(group).mean(0) for group in by_value.values()])
        _, strength, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
        # No more directions than the means span, and no more than the block has.
        directions = directions[strength > 1e-5 * strength.max()][:size].T
        # Drawn on the CPU: the same on every device.
        beyond = torch.randn(len(vectors), size).to(vectors)
        # QR keeps the span of the first k columns for every k: earlier blocks keep their span, and
        # the random directions only fill what is missing.
        frame = torch.linalg.qr(torch.cat([vectors, directions, beyond], 1))[0]
        vectors = frame[:, : vectors.shape[1] + size]
    return vectors
