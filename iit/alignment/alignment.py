"""The alignment: which edit realises which variable."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from iit.intervened import Edit, IntervenedModel
from iit.intervention import Intervention
from iit.network import LanguageModel
from iit.result import Row
from iit.site import Site, resolve


class Alignment(IntervenedModel):
    """The claim {variable: Edit} that is trained, scored, saved and shared.

    Everything an `IntervenedModel` does; `iit.fit` trains its interventions, `iit.evaluate` scores them. Its saved folder has
    `alignment.json` beside an intervened model's files: the variables, and the rows it was last scored with.
    """

    rows: Sequence[Row] = ()

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        told = {"variables": [str(v) for v in self.variables], "rows": [row.to_dict() for row in self.rows]}
        (folder / "alignment.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def one(network: LanguageModel | nn.Module, variable: str, site: Site, intervention: Callable[..., Intervention]) -> Alignment:
    """Align one variable with one site; the site's width completes the intervention.

    intervention: called as `intervention(width=…)`.
    Raises ValueError for a site whose width only a run can tell: pass a finished intervention to `Alignment` there.
    """
    width = resolve(network.model if isinstance(network, LanguageModel) else network, site).width
    if width is None:
        raise ValueError(f"The width of site {site} is known only when it runs; use Alignment(network, {{name: Edit(…)}}) there.")
    return Alignment(network, {variable: Edit([site], intervention(width=width))})
