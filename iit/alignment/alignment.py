"""The alignment: which edit realises which variable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from iit.alignment.inert import described, recalled
from iit.alignment.overlap import check_apart
from iit.intervened import Edit, IntervenedModel, capture
from iit.intervened.saving import SaveContent
from iit.intervened.widths import check_width
from iit.intervention import Intervention
from iit.network import LanguageModel, Network
from iit.network.components import transformer_in
from iit.result import Row
from iit.site import Site, resolve


class Alignment(IntervenedModel):
    """The claim {variable: Edit} that is trained, scored, saved and shared.

    Everything an `IntervenedModel` does; `iit.fit` trains its interventions, `iit.evaluate` scores
    them. Its saved folder has `alignment.json` beside an intervened model's files: the variables,
    the inert parts, and the rows it was last scored with.

    inert: {name: Edit}, parts of the network that the claim declares not to matter: other
        positions, other units, or what is left of a site beside a variable's subspace
        (`intervention.complement()`). Nothing edits them unless a loss or a control does.

    Raises ValueError for inert parts that are called as a variable is, are trained themselves, or
    read no source.
    """

    rows: Sequence[Row] = ()

    def __init__(
        self,
        network: Network | nn.Module,
        edits: Mapping[Any, Any],
        *,
        inert: Mapping[str, Edit] | None = None,
        source_grad: bool = False,
    ):
        super().__init__(network, edits, source_grad=source_grad)
        self.inert = dict(inert or {})
        own = set(self.parameters())
        for name, part in self.inert.items():
            if name in self.variables:
                raise ValueError(
                    f"The inert part {name!r} is called as a variable is; give it another name."
                )
            if not part.intervention.needs_source or not set(part.intervention.parameters()) <= own:
                raise ValueError(
                    f"The inert part {name!r} is replaced by a source's: give it a "
                    "VanillaIntervention (of some `units`), or the "
                    f"complement of a variable's intervention; got {part.intervention}."
                )
            check_width(name, part, self._resolved)

    def check_apart(self) -> None:
        """What `fit` asks of a claim. Raises ValueError where the edits of two variables take the
        same units of a site, or more dimensions
        together than it has, and where an inert part overlaps a variable's edit."""
        check_apart(self.edits, self.inert, self._resolved)

    @property
    def tokenizer(self) -> Any:
        """The network's tokenizer; None for a `Classifier`. Raises ValueError when the alignment
        was made without a language model.
        """
        return self._encoding().tokenizer

    def encode(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's own `encode`."""
        return self._encoding().encode(*args, **kwargs)

    def fingerprint(self) -> str:
        """The network's own `fingerprint`."""
        return self._encoding().fingerprint()

    def answer_tokens(self, texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The language model's own `answer_tokens`."""
        studied: Any = self._encoding()
        return studied.answer_tokens(texts, answers)

    def answers_right(
        self, texts: Sequence[Any], answers: Sequence[Any], *, batch_size: int = 64
    ) -> np.ndarray:
        """bool[n]: does the network, unedited, give each answer? What these runs compute is kept in
        the `store`, if there is one.

        With this an alignment may stand for its network in `Pairs.sample`: a prompt is then run
        once for filtering, training and evaluation.
        """
        studied = self._encoding()
        if not isinstance(studied, LanguageModel):
            return studied.answers_right(texts, answers)
        inactive = dict.fromkeys(self.variables, False)
        return studied.answers_right(
            texts,
            answers,
            batch_size=batch_size,
            logits=lambda batch: self.answer_logits(batch, active=inactive),
        )

    def places(self) -> dict[str, str]:
        """{variable: the sites of its edit, in words}."""
        return {
            str(variable): " + ".join(map(str, edit.sites))
            for name, edit in self.edits.items()
            for variable in edit.intervention.blocks or (name,)
        }

    def _encoding(self) -> Network:
        if self.studied is None:
            raise ValueError(
                "Texts need a tokenizer: make the alignment with the LanguageModel from "
                "iit.load_network."
            )
        return self.studied

    def _saved(self) -> SaveContent:
        record = {
            "variables": [str(v) for v in self.variables],
            "inert": {name: described(part, self.edits) for name, part in self.inert.items()},
            "rows": [row.to_dict() for row in self.rows],
        }
        return super()._saved()._replace(record=record)

    @classmethod
    def _of(cls, network: Network | nn.Module, saved: SaveContent) -> Self:
        record = saved.record or {}
        inert = {
            name: recalled(part, saved.edits) for name, part in record.get("inert", {}).items()
        }
        alignment = cls(network, saved.edits, inert=inert, source_grad=saved.source_grad)
        alignment.rows = [Row.from_dict(row) for row in record.get("rows", ())]
        return alignment


def one(
    network: Network | nn.Module,
    variable: str | Sequence[str],
    site: Site,
    intervention: Callable[..., Intervention],
    inert: str | None = None,
) -> Alignment:
    """Align one variable with one site, or several with blocks of one basis there; the site's width
    completes the intervention.

    variable: or several, which the intervention's blocks name.
    intervention: called as `intervention(width=…)`.
    inert: "complement" declares that what is left of the site beside the variable's subspace does
        not matter.
    Raises ValueError for a site whose width neither the network nor one run tells (give it with the
    intervention); for several variables whose blocks the intervention does not have; and for
    another `inert`, or one of which nothing is left.
    """
    if inert not in (None, "complement"):
        raise ValueError(
            f"inert={inert!r}: of one site it is 'complement' or null; `several` takes other parts."
        )
    edit = _edit(network, site, intervention)
    names = [variable] if isinstance(variable, str) else list(variable)
    if len(names) > 1 and set(edit.intervention.blocks or ()) != set(names):
        raise ValueError(
            f"One site for the variables {names} takes an intervention with a block for each; "
            "this one's are "
            f"{list(edit.intervention.blocks or ())}. Give intervention.blocks={{NAME: "
            f"dimensions, …}}, or each variable its own edit "
            "(alignment: iit.alignment.several)."
        )
    parts = {} if inert is None else {"rest": Edit(edit.sites, edit.intervention.complement())}
    return Alignment(network, {", ".join(names): edit}, inert=parts)


def several(
    network: Network | nn.Module,
    edits: Mapping[str, Mapping[str, Any]],
    inert: Mapping[str, Mapping[str, Any]] | None = None,
) -> Alignment:
    """Align several variables, and declare parts that do not matter.

    edits: name → {"site": Site or several, "intervention": called as `intervention(width=…)`}. The
        name is the variable's, or any where the intervention has blocks, which name theirs.
    inert: name → {"site", "intervention"} likewise (a vanilla one), or {"complement_of": NAME},
        what that edit leaves of its sites.

    Raises ValueError for a site whose width neither the network nor one run tells, for the
    complement of an edit that there is not, and for edits and parts that overlap (see
    `Alignment.check_apart`).
    """
    made = {name: _edit(network, **edit) for name, edit in edits.items()}
    parts = {}
    for name, part in (inert or {}).items():
        of = part.get("complement_of")
        if of is not None and of not in made:
            raise ValueError(
                f"inert: {name!r} is the complement of {of!r}, which is no edit; the edits are "
                f"{list(made)}."
            )
        parts[name] = (
            _edit(network, **part)
            if of is None
            else Edit(made[of].sites, made[of].intervention.complement())
        )
    alignment = Alignment(network, made, inert=parts)
    alignment.check_apart()
    return alignment


def _edit(
    network: Network | nn.Module,
    site: Site | Sequence[Site],
    intervention: Callable[..., Intervention],
) -> Edit:
    sites = [site] if isinstance(site, Site) else list(site)
    if getattr(intervention, "keywords", {}).get("width") is not None:
        return Edit(sites, intervention())
    return Edit(
        sites,
        intervention(
            width=_width(network.model if isinstance(network, Network) else network, sites[0])
        ),
    )


def _width(module: nn.Module, site: Site) -> int:
    """What the network says without a run, or one run on tokens, or on zeros for the first linear
    module.
    """
    width = resolve(module, site).width
    if width is not None:
        return width
    if site.component is not None:
        raise ValueError(
            f"Site {site} is as wide as its batch is long: no intervention has one width there."
        )
    try:
        try:
            inputs = transformer_in(module).dummy_inputs
        except ValueError:
            first = next(m.in_features for m in module.modules() if isinstance(m, nn.Linear))
            inputs = torch.zeros(1, first)
        modes = [(part, part.training) for part in module.modules()]
        module.eval()  # a norm of batches would count this run
        try:
            return capture(module, inputs, replace(site, position=None)).popitem()[1].shape[-1]
        finally:
            for part, training in modes:
                part.training = training
    except Exception as error:  # whatever a network of one's own says to such inputs
        raise ValueError(
            f"The width of site {site} is known only when it runs, and a first run failed "
            f"({error!r}). Say the width: "
            "+intervention.width=NUMBER, or in Python functools.partial(intervention, "
            "width=NUMBER)."
        ) from error


def none(network: Network | nn.Module) -> Alignment:
    """No claim at all: the network itself, which `IIT` then trains on the task alone."""
    return Alignment(network, {})
