"""The alignment: the claim that an edit of the network realises a variable of the causal model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from iit.alignment.inert import described, recalled
from iit.alignment.overlap import check_apart
from iit.intervened import Edit, IntervenedModel, capture
from iit.intervened.edit import variables_of
from iit.intervened.saving import SaveContent
from iit.intervened.widths import check_width
from iit.intervention import Intervention
from iit.network import LanguageModel, Network
from iit.network.limits import unwrapped
from iit.result import SCORE, Row, where
from iit.result.table import Table
from iit.site import Site, resolve


class Alignment(IntervenedModel):
    """The claim {variable: Edit} that is trained, scored, saved and shared.

    It does everything that an `IntervenedModel` does. `iit.fit` trains its interventions and
    `iit.evaluate` scores them. Its saved folder has `alignment.json` beside an intervened model's
    files: the variables, the inert parts, and `rows`.

    Arguments:
        network, edits, source_grad: as in `IntervenedModel`.
        inert: {name: Edit}, the inert parts: what the claim declares not to matter. They are other
            positions, other units, or the rest of a site beside a variable's subspace
            (`intervention.complement()`). The alignment's own runs leave them alone. Only a loss or
            a control edits them.

    Attributes:
        rows: what an evaluation returned, for the saved folder. The user, or a job, sets it; `fit`
            empties it.
        fitted: what `fit` returned of it; None before, and where it was loaded.

    Raises:
        ValueError: an inert part has the name of a variable, has weights of its own, reads no
            source, or does not fit its site's width; or as an `IntervenedModel` raises.
    """

    rows: Sequence[Row] = ()
    fitted: Any = None

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
        # An inert part may share the weights of a variable's edit, as a complement does. Weights of
        # its own would never be trained.
        weights = set(self.parameters())
        for name, part in self.inert.items():
            if name in self.variables:
                raise ValueError(
                    f"The inert part {name!r} is called as a variable is; give it another name."
                )
            untrained = set(part.intervention.parameters()) - weights
            if untrained or not part.intervention.needs_source:
                raise ValueError(
                    f"The inert part {name!r} is replaced by a source's: give it a "
                    "VanillaIntervention (of some `units`), or the complement of a variable's "
                    f"intervention; got {part.intervention}."
                )
            check_width(name, part, self.resolved)

    def as_table(self) -> Table:
        """A line for each edit; then how it was fitted, and how it scored."""
        table = super().as_table()
        caption = f"{table.caption}; {self.fitted or 'not fitted here'}"
        for row in where(self.rows, **{**SCORE, "split": "test"}):
            caption += f"\n{row}"
        return replace(table, caption=caption)

    def check_apart(self) -> None:
        """Check that edits and inert parts claim different subspaces; `fit` calls this.

        Raises ValueError where the edits of two variables take the same units of a site, or
        together more dimensions than it has. Raises it too where an inert part overlaps a
        variable's edit.
        """
        check_apart(self.edits, self.inert, self.resolved)

    @property
    def tokenizer(self) -> Any:
        """The network's tokenizer; None for a `Classifier`.

        Raises ValueError where the alignment was made with a bare module.
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
        """Whether the unedited network gives each answer, as bool[n].

        An alignment may therefore stand for its network in `Pairs.sample`. If it has a `store`, the
        store holds what these runs compute. A prompt is then run once for filtering, training and
        evaluation.
        """
        studied = self._encoding()
        if not isinstance(studied, LanguageModel):
            return studied.answers_right(texts, answers)
        # With all edits inactive this is the unedited run, but it goes through the store.
        unedited = partial(self.answer_logits, active=dict.fromkeys(self.variables, False))
        return studied.answers_right(texts, answers, batch_size=batch_size, logits=unedited)

    def site_texts(self) -> dict[str, str]:
        """The sites of each variable's edit as text: {variable: "block_output[17] @ s2"}."""
        site_texts = {}
        for key, edit in self.edits.items():
            for variable in variables_of(key, edit):
                site_texts[str(variable)] = " + ".join(map(str, edit.sites))
        return site_texts

    def _encoding(self) -> Network:
        if self.studied is None:
            raise ValueError(
                "A bare module does not encode inputs: make the alignment with a LanguageModel "
                "(iit.load_network) or a Classifier."
            )
        return self.studied

    def _saved(self) -> SaveContent:
        record = {
            "variables": list(map(str, self.variables)),
            "inert": {name: described(part, self.edits) for name, part in self.inert.items()},
            "rows": [row.to_dict() for row in self.rows],
        }
        return super()._saved()._replace(record=record)

    @classmethod
    def _of(cls, network: Network | nn.Module, saved: SaveContent) -> Self:
        record = {"inert": {}, "rows": ()} | (saved.record or {})
        # After the edits: a complement is made from its edit's intervention.
        inert = {name: recalled(part, saved.edits) for name, part in record["inert"].items()}
        alignment = cls(network, saved.edits, inert=inert, source_grad=saved.source_grad)
        alignment.rows = [Row.from_dict(row) for row in record["rows"]]
        return alignment


def one(
    network: Network | nn.Module,
    variable: str | Sequence[str],
    site: Site,
    intervention: Callable[..., Intervention],
    inert: str | None = None,
) -> Alignment:
    """Align one variable with one site, or several variables with blocks of one basis there.

    Arguments:
        variable: the variable, or several that the intervention's blocks name.
        site: the site; its width completes the intervention.
        intervention: called as `intervention(width=…)`.
        inert: "complement" declares that the rest of the site, beside the variable's subspace, does
            not matter.

    Raises:
        ValueError: neither the network nor a run gives the site's width (then give it with the
            intervention); several variables lack blocks of their names; `inert` is another word; or
            the complement is empty.
    """
    if inert not in (None, "complement"):
        raise ValueError(
            f"inert={inert!r}: of one site it is 'complement' or null; `several` takes other parts."
        )
    edit = _edit(network, site, intervention)
    names = [variable] if isinstance(variable, str) else list(variable)
    blocks = list(edit.intervention.blocks or ())
    if len(names) > 1 and set(blocks) != set(names):
        raise ValueError(
            f"One site for the variables {names} takes an intervention with a block for each; this "
            f"one's are {blocks}. Give intervention.blocks={{NAME: dimensions, …}}, or each "
            "variable its own edit (alignment: iit.alignment.several)."
        )
    parts = {}
    if inert is not None:
        parts["rest"] = _complement(edit)
    # A key such as "a, b" is only a name: the blocks say which variables the edit serves.
    return Alignment(network, {", ".join(names): edit}, inert=parts)


def several(
    network: Network | nn.Module,
    edits: Mapping[str, Mapping[str, Any]],
    inert: Mapping[str, Mapping[str, Any]] | None = None,
) -> Alignment:
    """Align several variables, and declare parts that do not matter.

    Arguments:
        edits: name → {"site": Site or several, "intervention": called as `intervention(width=…)`}.
            The name is the variable's. Where the intervention has blocks, these name the variables,
            and the name is free.
        inert: name → {"site", "intervention"} likewise (a vanilla one), or {"complement_of": NAME}
            for the rest of that edit's sites.

    Raises:
        ValueError: neither the network nor a run gives a site's width; a complement names no edit;
            or edits and parts overlap (see `Alignment.check_apart`).
    """
    completed = {name: _edit(network, **edit) for name, edit in edits.items()}
    # A complement shares the weights of its edit, so the edits come first.
    parts = {}
    for name, part in (inert or {}).items():
        origin = part.get("complement_of")
        if origin is None:
            parts[name] = _edit(network, **part)
        elif origin in completed:
            parts[name] = _complement(completed[origin])
        else:
            raise ValueError(
                f"inert: {name!r} is the complement of {origin!r}, which is no edit; the edits are "
                f"{list(completed)}."
            )
    alignment = Alignment(network, completed, inert=parts)
    alignment.check_apart()
    return alignment


def _edit(
    network: Network | nn.Module,
    site: Site | Sequence[Site],
    intervention: Callable[..., Intervention],
) -> Edit:
    """An edit of these sites, whose width completes the intervention."""
    sites = [site] if isinstance(site, Site) else list(site)
    # A `functools.partial` that already has its width needs no width from the network.
    if getattr(intervention, "keywords", {}).get("width") is not None:
        return Edit(sites, intervention())
    module = network.model if isinstance(network, Network) else network
    return Edit(sites, intervention(width=_width(module, sites[0])))


def _complement(edit: Edit) -> Edit:
    """The rest of an edit's sites, beside its subspace."""
    return Edit(edit.sites, edit.intervention.complement())


def _width(module: nn.Module, site: Site) -> int:
    """The width of a site: as the network's modules say, else as one run shows.

    The run is on a transformer's dummy tokens, or on zeros for the first linear module.
    """
    width = resolve(module, site).width
    if width is not None:
        return width
    if site.component is not None:
        raise ValueError(
            f"Site {site} is as wide as its batch is long: no intervention has one width there."
        )
    try:
        inputs = getattr(unwrapped(module), "dummy_inputs", None)
        if inputs is None:
            first = next(m for m in module.modules() if isinstance(m, nn.Linear))
            inputs = torch.zeros(1, first.in_features)
        else:
            # The mask of T5's decoder is padded on the left. No width depends on it.
            inputs = dict(inputs)
            inputs.pop("decoder_attention_mask", None)
        # At all positions: the roles and indices of the site may not exist in these inputs.
        everywhere = replace(site, position=None)
        modes = [(part, part.training) for part in module.modules()]
        module.eval()  # a norm of batches would count this run
        try:
            return capture(module, inputs, everywhere)[everywhere].shape[-1]
        finally:
            for part, training in modes:
                part.training = training
    except Exception as error:  # whatever a network of one's own says to such inputs
        raise ValueError(
            f"The width of site {site} is known only when it runs, and a first run failed "
            f"({error!r}). Say the width: +intervention.width=NUMBER, or in Python "
            "functools.partial(intervention, width=NUMBER)."
        ) from error


def none(network: Network | nn.Module) -> Alignment:
    """An alignment without edits: `IIT` then trains the network on the task alone."""
    return Alignment(network, {})
