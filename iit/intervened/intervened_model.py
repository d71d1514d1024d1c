"""The intervened network: a frozen network, and the edits that are done to its runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervened import saving
from iit.intervened.batch import Batch, Inputs, prepare, restored
from iit.intervened.edit import Edit
from iit.intervened.observe import observe
from iit.intervened.positions import Columns, columns
from iit.intervened.resume import Suffix, first_block, resumed, span, suffix
from iit.intervened.sources import Active, Sources, Variable, activity, by_variable, source_activations, variables_of
from iit.intervened.store import ActivationStore
from iit.intervened.widths import check_joint, check_width
from iit.intervention import Intervention
from iit.network import LanguageModel
from iit.network.answering import head_at
from iit.site import ResolvedSite, Site, resolve

Model = TypeVar("Model", bound="IntervenedModel")


class Run(NamedTuple):
    """What `IntervenedModel.run` returns.

    output: the network's own output object after the edits.
    base_output: its output without them.
    activations: {variable: Tensor[batch, position, width]}, what each edit saw before it acted (several sites are
        concatenated along positions).
    """

    output: Any
    base_output: Any
    activations: dict[Variable, Tensor]


class IntervenedModel(nn.Module):
    """A network and edits: `edited(base, sources)` runs the base with the sources' values swapped in.

    network: a `LanguageModel`, a transformers model, or any `nn.Module`. It is held outside module registration: parameters,
        state dict and train mode of this object are the interventions' alone.
    edits: {variable: Edit} or, short for one edit a site, {site: intervention}. An edit whose intervention has blocks serves
        the variables that its blocks name.
    source_grad: let gradients flow through the source runs, too.

    Its attribute `store` is None unless set; with an `ActivationStore`, `answer_logits` reads from it what earlier runs have
    left: source activations, and the base's residual stream below the first edited block.

    Raises ValueError for a site the network lacks, an intervention of another width, and variables named twice, before
    anything runs.
    """

    def __init__(
        self,
        network: LanguageModel | nn.Module,
        edits: Mapping[Variable, Edit | Intervention],
        *,
        source_grad: bool = False,
    ):
        super().__init__()
        if not edits:
            raise ValueError("An intervened model needs at least one edit.")
        # A tuple is not registered by nn.Module: the network stays outside of parameters(), state_dict() and train().
        self._held = (network, network.model if isinstance(network, LanguageModel) else network)
        self.edits: dict[Variable, Edit] = {key: _edit(key, edit) for key, edit in edits.items()}
        self.source_grad = source_grad
        self.store: ActivationStore | None = None
        self.variables: tuple[Variable, ...] = tuple(v for key, edit in self.edits.items() for v in variables_of(key, edit))
        twice = sorted({str(v) for v in self.variables if self.variables.count(v) > 1})
        if twice:
            raise ValueError(f"Variables {twice} are named by more than one edit or block.")
        self._resolved: dict[Site, ResolvedSite] = {}
        for key, edit in self.edits.items():
            for site in (*edit.sites, *edit.source_sites):
                self._resolved.setdefault(site, resolve(self.network, site))
            check_width(key, edit, self._resolved)
            if edit.intervention.skips:
                for site in edit.sites:
                    before = _block_input(site)
                    self._resolved.setdefault(before, resolve(self.network, before))
        self._first_block = first_block(self.network, self.edits.values())
        if self._first_block:
            start = Site("block_output", layer=self._first_block - 1)
            self._resolved.setdefault(start, resolve(self.network, start))
        # Shared interventions appear once; the order is the edits'.
        self.interventions = nn.ModuleList(dict.fromkeys(edit.intervention for edit in self.edits.values()))
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        self.interventions.to(device)

    @property
    def network(self) -> nn.Module:
        """The network under study."""
        return self._held[1]

    @property
    def language_model(self) -> LanguageModel | None:
        """The `LanguageModel` this was made with, if it was one."""
        return self._held[0] if isinstance(self._held[0], LanguageModel) else None

    @property
    def needs_source(self) -> bool:
        """Whether any edit reads a source."""
        return any(edit.intervention.needs_source for edit in self.edits.values())

    def extra_repr(self) -> str:
        """Each variable with its sites."""
        return "\n".join(f"{key}: {', '.join(str(site) for site in edit.sites)}" for key, edit in self.edits.items())

    def forward(self, base: Inputs, sources: Sources = None, active: Active = None) -> Any:
        """The network's own output object on the edited base run, in the caller's layout."""
        batch = prepare(self.network, base)
        with self.editing(batch, sources, active):
            output = self.network(*batch.args, **batch.kwargs)
        return restored(output, batch)

    def run(self, base: Inputs, sources: Sources = None, active: Active = None) -> Run:
        """The edited output beside the base's own, and what each edit saw."""
        batch = prepare(self.network, base)
        base_output = restored(self.network(*batch.args, **batch.kwargs), batch)
        with self.editing(batch, sources, active) as seen:
            output = restored(self.network(*batch.args, **batch.kwargs), batch)
        activations = {
            key: torch.cat([seen[key, number] for number in range(len(edit.sites))], 1)
            for key, edit in self.edits.items()
            if all((key, number) in seen for number in range(len(edit.sites)))
        }
        return Run(output, base_output, activations)

    def answer_logits(
        self, base: Inputs, sources: Sources = None, active: Active = None
    ) -> Float[Tensor, "batch n_answer vocab"]:
        """Logits where the base's `answer` is read: Tensor[batch, n_answer, vocab], or [batch, 1, classes] without tokens.

        The answer is teacher-forced; a language model's head runs at these columns only. Without an answer the next token
        is read.
        """
        batch = prepare(self.network, base)
        if batch.lengths is None:
            with self.editing(batch, sources, active):
                return _class_logits(self.network(*batch.args, **batch.kwargs))
        batch, read = batch.with_answer()
        flags, places = self._placed(batch, active)
        rest = self._suffix(batch, places, read)
        with ExitStack() as stack:
            stack.enter_context(self._edited(batch, sources, flags, places, rest))
            if rest is not None:
                stack.enter_context(resumed(self.network, rest))
                batch, read = rest.batch, rest.of(read)
            at_answer = stack.enter_context(head_at(self.network, read))
            output = self.network(*batch.args, **batch.kwargs)
        logits = getattr(output, "logits", None)
        if logits is None or logits.ndim == 2:
            return _class_logits(output)
        return logits if at_answer else logits.gather(1, read.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `interventions.safetensors`, atomically.

        Raises ValueError for interventions that cannot be saved, FileExistsError when the folder holds other files.
        """
        with saving.written_folder(folder) as temporary:
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        saving.write(folder, self.edits, saving.identity(self._held[0]))

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder: str | Path,
        network: LanguageModel | nn.Module,
        *,
        types: Mapping[str, Any] | None = None,
        check_network: bool = True,
    ) -> Model:
        """Load from a folder, on the network it was saved for.

        types: a user's own intervention classes by name, beside those of `iit.intervention`.
        Raises FileNotFoundError for missing files and ValueError for damaged or altered ones and for another network.
        """
        edits, saved = saving.read(folder, types)
        if check_network:
            saving.check_network(saved, network)
        return cls(network, edits)

    def _suffix(self, batch: Batch, places: Mapping[tuple[Variable, int], Columns], read: Tensor) -> Suffix | None:
        """What has to run, given what earlier runs have left; None where all of it has to."""
        if self._first_block is None or self.store is None or not self.store.serves(self.network, batch):
            return None
        first, stop = span(places.values(), read, batch.tokens.shape[1])
        before = self.store.prefix(self.network, batch, self._first_block, first, stop, self._resolved)
        return suffix(self.network, batch, self._first_block, first, stop, before)

    @contextmanager
    def editing(
        self, batch: Batch, sources: Sources = None, active: Active = None
    ) -> Iterator[dict[tuple[Variable, int], Tensor]]:
        """Within the context the network's next forward is edited; yields what the edits see, filled as it runs.

        Everything about the input is checked on entry, before the network runs on the base.
        """
        with self._edited(batch, sources, *self._placed(batch, active)) as seen:
            yield seen

    def _placed(self, batch: Batch, active: Active) -> tuple[dict[Variable, Tensor | None], dict[tuple[Variable, int], Columns]]:
        """Which examples each variable's edit touches, and where."""
        flags = activity(list(self.variables), active, batch)
        places = {}
        for key, edit in self.edits.items():
            for number, site in enumerate(edit.sites):
                if torch.is_grad_enabled():
                    self._resolved[site].refuse_recomputed()
                places[key, number] = columns(site, batch, _any_active(key, edit, flags))
                if edit.joint:
                    check_joint(key, edit, places[key, number], batch, self._resolved[site].width)
        return flags, places

    @contextmanager
    def _edited(
        self,
        batch: Batch,
        sources: Sources,
        flags: Mapping[Variable, Tensor | None],
        places: dict[tuple[Variable, int], Columns],
        rest: Suffix | None = None,
    ) -> Iterator[dict[tuple[Variable, int], Tensor]]:
        values = source_activations(
            self.network,
            self.edits,
            batch,
            places,
            by_variable(self.edits, sources),
            flags,
            self._resolved,
            grad=self.source_grad,
            read=self.store.read if self.store is not None else observe,
        )
        if rest is not None:
            places = {key: rest.shifted(place) for key, place in places.items()}
        seen: dict[tuple[Variable, int], Tensor] = {}
        fired: set[tuple[Variable, int]] = set()
        with ExitStack() as stack:
            for key, edit in self.edits.items():
                for number, site in enumerate(edit.sites):
                    source = _source_of(key, edit, number, values)
                    if edit.intervention.skips:
                        held: list[Tensor] = []
                        before = self._resolved[_block_input(site)]
                        stack.callback(before.attach(_holder(held)).remove)
                        source = held
                    editor = self._editor(key, edit, number, places[key, number], source, flags, seen, fired)
                    stack.callback(self._resolved[site].attach(editor).remove)
            yield seen
            missed = [
                str(edit.sites[n]) for key, edit in self.edits.items() for n in range(len(edit.sites)) if (key, n) not in fired
            ]
            if missed:
                raise RuntimeError(f"The forward never ran the module of {', '.join(missed)}: nothing was edited there.")

    def _editor(
        self,
        key: Variable,
        edit: Edit,
        number: int,
        place: Columns,
        source: Tensor | dict[str, Tensor] | list[Tensor] | None,
        flags: Mapping[Variable, Tensor | None],
        seen: dict[tuple[Variable, int], Tensor],
        fired: set[tuple[Variable, int]],
    ) -> Callable[[Tensor], Tensor | None]:
        intervention = edit.intervention
        active: Any = flags[key] if intervention.blocks is None else _present({b: flags[b] for b in intervention.blocks})
        found = [flags[v] for v in variables_of(key, edit)]
        idle = all(flag is not None and not bool(flag.any()) for flag in found)

        def edited(activation: Tensor) -> Tensor | None:
            if (key, number) in fired:
                raise RuntimeError(
                    f"Site {edit.sites[number]} was run more than once in one forward; name a module that runs once."
                )
            fired.add((key, number))
            piece = place.read(activation)
            seen[key, number] = piece
            if intervention.collects or idle:
                return None
            given = place.read(source[0]) if isinstance(source, list) else source
            shape = piece.shape
            if edit.joint:
                piece = piece.reshape(shape[0], 1, -1)
                given = given.reshape(shape[0], 1, -1) if isinstance(given, Tensor) else given
                if isinstance(given, dict):
                    given = {block: value.reshape(shape[0], 1, -1) for block, value in given.items()}
            return place.write(activation, intervention(piece, given, active).reshape(shape))

        return edited


def _edit(key: Variable, edit: Edit | Intervention) -> Edit:
    if isinstance(edit, Edit):
        return edit
    if not isinstance(key, Site):
        raise ValueError(f"Variable {key!r} needs an `Edit(sites=…, intervention=…)`; only a Site may stand for its own edit.")
    return Edit([key], edit)


def _block_input(site: Site) -> Site:
    if site.component != "block_output":
        raise ValueError(f"SkipIntervention puts the block's own input in place of `block_output`; the site is {site}.")
    return Site("block_input", layer=site.layer, position=site.position)


def _holder(held: list[Tensor]) -> Callable[[Tensor], None]:
    def hold(activation: Tensor) -> None:
        held[:] = [activation]

    return hold


def _source_of(
    key: Variable, edit: Edit, number: int, values: Mapping[tuple[Variable, int], Tensor]
) -> Tensor | dict[str, Tensor] | None:
    if edit.intervention.blocks is None:
        return values.get((key, number))
    return {block: values[block, number] for block in edit.intervention.blocks if (block, number) in values}


def _present(flags: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
    """Only the blocks that are not wholly active; None when all are."""
    return {block: flag for block, flag in flags.items() if flag is not None} or None


def _any_active(key: Variable, edit: Edit, flags: Mapping[Variable, Tensor | None]) -> Tensor | None:
    found = [flags[v] for v in variables_of(key, edit)]
    if any(flag is None for flag in found):
        return None
    return torch.stack([flag for flag in found if flag is not None]).any(0)


def _class_logits(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None or logits.ndim != 2:
        raise ValueError(
            f"Without tokens the answer is a class: the output must be Tensor[batch, classes] or have such `.logits`; "
            f"{type(output).__name__} does not."
        )
    return logits.unsqueeze(1)
