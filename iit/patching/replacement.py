"""What replaces a cell, row by row."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch.nn.utils.rnn import pad_sequence

from iit.intervened import Activations, Edit, IntervenedModel
from iit.intervention import VanillaIntervention
from iit.patching.activations import ActivationReader
from iit.patching.cell_runs import CELL, CellGroup, CellRows, EditedCells
from iit.patching.contrast import Contrast, batch_rows
from iit.patching.grid import MapCell
from iit.site import Site


@final
class Replacement:
    """A cell is replaced by what the source has at the cell's own position.

    A single unit is replaced by that unit of the source.

    source: a batch, or activations, {site: Tensor[pair, position, width]}.
    at: where replacements go; by default to the cells' own sites.
    """

    def __init__(
        self,
        contrast: Contrast,
        cells: Sequence[MapCell],
        source: Mapping[Any, Any],
        at: Site | None = None,
    ):
        sites = [cell.site for cell in cells if not _by_batch(cell)]
        self._source = source
        self._at = at
        self._base_reader = ActivationReader(contrast.network, contrast.base, sites)
        self._source_reader = ActivationReader(contrast.network, source, sites)

    def edit_of(self, group: CellGroup) -> EditedCells:
        """The base's runs with each cell replaced."""
        edit = Edit(self._at or group.site, VanillaIntervention(), source_sites=group.site)
        model = IntervenedModel(group.contrast.network, {"cell": edit})
        return model, lambda rows: model.answer_logits(rows.base, self.of(group, rows))

    def of(self, group: CellGroup, rows: CellRows) -> Mapping[Any, Any]:
        """What replaces each row's cell: activations at the group's site, or a batch to be run.

        Raises:
            ValueError: where base and source differ in their number of positions at a unit's site.
        """
        first = group.cells[0]
        if _by_batch(first) and not isinstance(self._source, Activations):
            batch = batch_rows(self._source, rows.pair)
            if group.site.position is not None:
                columns = group.columns(self._source)
                # The source is read at the cell's position in the source itself.
                batch["positions"] = {CELL: columns[rows.cell, rows.pair]}
            return batch

        replacements = _in_rows(self._source_reader.at(group.sites), group, rows)
        if first.unit is None:
            return replacements
        originals = _in_rows(self._base_reader.at(group.sites), group, rows)
        return _with_source_unit(originals, replacements, group, rows)


def _by_batch(cell: MapCell) -> bool:
    """Whether a cell's source is run batch by batch, and not read ahead.

    A module may have positions of its own, and attention weights are as wide as their batch is
    long.
    """
    return cell.unit is None and cell.site.component in (None, "attention_weight")


def _in_rows(values: Activations, group: CellGroup, rows: CellRows) -> Activations:
    """The activation of each row's cell and pair, as {the group's site: [row, position, width]}."""
    sites = group.sites
    tensors = [values[sites[c]][pair] for c, pair in zip(rows.cell, rows.pair, strict=True)]
    of_rows = pad_sequence(tensors, batch_first=True)
    counts = [n for site in sites if (n := values.counts[site]) is not None]
    if not counts:
        return Activations({group.site: of_rows}, {group.site: None})
    n = torch.stack(counts)[rows.cell, rows.pair]
    # Without positions that no row of this batch has.
    return Activations({group.site: of_rows[:, : int(n.max())]}, {group.site: n})


def _with_source_unit(
    originals: Activations, replacements: Activations, group: CellGroup, rows: CellRows
) -> Activations:
    """The base's activations with one unit of the source's in each row."""
    site = group.site
    old, new = originals[site], replacements[site]
    units = torch.tensor([cell.unit for cell in group.cells])
    if old.shape != new.shape:
        raise ValueError(f"{site}: base and source have other numbers of positions there.")
    row = torch.arange(len(old))
    unit = units[rows.cell]
    # [row, position]: in each row the unit of its own cell, at all positions. `_in_rows` has made a
    # copy, so the base's activations stay.
    old[row, :, unit] = new[row, :, unit]
    return Activations(originals, replacements.counts)
