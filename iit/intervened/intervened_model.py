"""The intervened network: a frozen network, and the edits that are done to its runs."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iit.intervened import generate as generation
from iit.intervened.batch import Batch, Inputs, prepare, restored
from iit.intervened.edit import Edit
from iit.intervened.edited_run import EditedRun, Source, block_input
from iit.intervened.observe import observe
from iit.intervened.positions import Columns, columns
from iit.intervened.resumable import Resumable
from iit.intervened.resume import first_block
from iit.intervened.shareable import Shareable
from iit.intervened.sources import Active, Sources, Variable, activity, by_variable, source_activations, variables_of
from iit.intervened.store import ActivationStore
from iit.intervened.widths import check_joint, check_one_width, check_width
from iit.intervention import Intervention
from iit.network import LanguageModel, Network
from iit.network.components import transformer_in
from iit.network.layout import device_of
from iit.site import ResolvedSite, Site, resolve


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


class IntervenedModel(Resumable, Shareable):
    """A network and edits: `edited(base, sources)` runs the base with the sources' values swapped in.

    network: a `LanguageModel`, a `Classifier`, a transformers model, or any `nn.Module`. It is held outside module registration: parameters,
        state dict and train mode of this object are the interventions' alone.
    edits: {variable: Edit} or, short for one edit a site, {site: intervention}. An edit whose intervention has blocks serves
        the variables that its blocks name.
    source_grad: let gradients flow through the source runs, too.
    stored: variables whose edits of `embedding_output` the store's own runs are done under: from block 1 on a run resumes behind them.

    Its attribute `store` is None unless set; with an `ActivationStore`, `answer_logits` reads from it what earlier runs have
    left: source activations, and the base's residual stream below the first edited block.

    Raises ValueError for a site the network lacks, an intervention of another width, variables named twice, and stored edits
    elsewhere than at the embedding, before anything runs.
    """

    def __init__(
        self,
        network: Network | nn.Module,
        edits: Mapping[Variable, Edit | Intervention],
        *,
        source_grad: bool = False,
        stored: Collection[Variable] = (),
    ):
        super().__init__()
        # A tuple is not registered by nn.Module: the network stays outside of parameters(), state_dict() and train().
        self._held = (network, network.model if isinstance(network, Network) else network)
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
                    before = block_input(site)
                    self._resolved.setdefault(before, resolve(self.network, before))
        self.stored = frozenset(stored)
        if any(site.component != "embedding_output" for key in self.stored for site in self.edits[key].sites):
            raise ValueError(f"stored={sorted(map(str, self.stored))}: only edits of embedding_output come before all blocks.")
        self.first_block = first_block(self.network, [edit for key, edit in self.edits.items() if key not in self.stored])
        if not self.first_block:
            self.stored = frozenset()
            self.first_block = first_block(self.network, self.edits.values())
        # Shared interventions appear once; the order is the edits'.
        self.interventions = nn.ModuleList(dict.fromkeys(edit.intervention for edit in self.edits.values()))
        self.interventions.to(device_of(self.network))

    def _network(self) -> Network | nn.Module:
        return self._held[0]

    @property
    def network(self) -> nn.Module:
        """The network under study."""
        return self._held[1]

    @property
    def studied(self) -> Network | None:
        """The `LanguageModel` or `Classifier` this was made with, if it was one: what encodes inputs and answers."""
        return self._held[0] if isinstance(self._held[0], Network) else None

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
        with self.edited_run(batch, sources, active).applied():
            output = batch.through(self.network)
        return restored(output, batch)

    def run(self, base: Inputs, sources: Sources = None, active: Active = None) -> Run:
        """The edited output beside the base's own, and what each edit saw.

        Raises ValueError where one edit's sites differ in width, and as a call does.
        """
        check_one_width(self.edits, self._resolved)
        batch = prepare(self.network, base)
        base_output = restored(batch.through(self.network), batch)
        with self.edited_run(batch, sources, active).applied() as seen:
            output = restored(batch.through(self.network), batch)
        activations = {
            key: torch.cat([seen[key, number] for number in range(len(edit.sites))], 1)
            for key, edit in self.edits.items()
            if all((key, number) in seen for number in range(len(edit.sites)))
        }
        return Run(output, base_output, activations)

    def generate(
        self, base: Inputs, sources: Sources = None, active: Active = None, *, scope: str = "prompt", **options: Any
    ) -> Any:
        """Generate under the edits: token ids as the network's own `generate` returns them, prompts as the caller laid them out.

        scope: "prompt" edits the sites' positions in the prompt, "generated" every new token as it is read back, "all" both. A
            role or position selects in the prompt only; one that reads a source there uses it for every new token.
            Adding twice the difference between the mean residual streams of sentences about the sea and of others, after block
            10 of SmolLM2-135M with scope "all", turned 8 of 8 greedy continuations of unrelated prompts to the sea (0 of 8
            without); it costs fluency.
        options: what transformers' `generate` takes. Greedy search and beams give the same tokens whatever the batch; sampling
            repeats for a fixed batch and seed. An `answer` in the base is not read.

        Returns LongTensor[batch * num_return_sequences, prompt + new] (or the output object, where options ask for one).
        Raises ValueError for an unknown scope, networks that do not generate, options under which edits would be missed (an
        assistant, a static cache, …), and edits that make no sense token by token.
        """
        batch = prepare(self.network, base)
        generation.check(self.network, self.edits.values(), batch, scope, options)
        run = self.edited_run(batch, sources, active)
        process = generation.Generation(batch, scope)
        lm: Any = self.language_model
        if lm is not None:
            options.setdefault("pad_token_id", lm.tokenizer.pad_token_id)
        if getattr(getattr(self.network, "generation_config", None), "cache_implementation", None) is not None:
            # The network's own wish for a static cache is about speed.
            options["cache_implementation"] = "dynamic"

        def editor(key: Variable, number: int, source: Source, active: Any, idle: bool) -> Callable[[Tensor], Tensor | None]:
            edit = process.editor(self.edits[key], run.places[key, number], source, active)
            return (lambda activation: None) if idle else edit

        network: Any = self.network
        with run.attached(editor):
            handle = process.follow(transformer_in(network))
            try:
                ids = network.generate(**process.inputs, **options)
            finally:
                handle.remove()
        assert isinstance(base, Mapping)
        return process.restored(ids, base["input_ids"])

    def edited_activations(self, base: Inputs, sources: Sources = None, active: Active = None) -> dict[Variable, Tensor]:
        """{variable: Tensor[batch, position, width]}: what each edit by itself makes of the unedited base (several sites are concatenated
        along positions).

        Raises ValueError where one edit's sites differ in width, and as a call does.
        """
        check_one_width(self.edits, self._resolved)
        batch = prepare(self.network, base).at_answer(self.network, self._resolved)
        run = self.edited_run(batch, sources, active)
        read = self.store.read if self.store is not None else observe
        found: dict[Variable, Tensor] = {}
        for key, edit in self.edits.items():
            places = {site: run.places[key, number] for number, site in enumerate(edit.sites)}
            seen = read(self.network, batch, places, grad=False, resolved=self._resolved)
            made = []
            for number, site in enumerate(edit.sites):
                source, active = run.given(key, number)
                made.append(edit.apply(seen[site], source, active))
            found[key] = torch.cat(made, 1)
        return found

    def _places(self, batch: Batch, flags: Mapping[Variable, Tensor | None]) -> dict[tuple[Variable, int], Columns]:
        return {
            (key, number): columns(site, batch, _any_active(key, edit, flags))
            for key, edit in self.edits.items()
            for number, site in enumerate(edit.sites)
        }

    def edited_run(self, batch: Batch, sources: Sources = None, active: Active = None) -> EditedRun:
        """The edits of one batch, ready to be applied; everything about the input is checked, and the sources are run.

        Raises ValueError for what does not fit, before the network runs on the base.
        """
        flags = activity(list(self.variables), active, batch)
        places = self._places(batch, flags)
        for key, edit in self.edits.items():
            for number, site in enumerate(edit.sites):
                if torch.is_grad_enabled():
                    self._resolved[site].refuse_recomputed()
                if edit.joint:
                    check_joint(key, edit, places[key, number], self._resolved[site].width)
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
        trains = any(p.requires_grad for p in (*self.parameters(), *self.network.parameters()))
        return EditedRun(self.edits, self._resolved, flags, places, values, trains)


def _edit(key: Variable, edit: Edit | Intervention) -> Edit:
    if isinstance(edit, Edit):
        return edit
    if not isinstance(key, Site):
        raise ValueError(f"Variable {key!r} needs an `Edit(sites=…, intervention=…)`; only a Site may stand for its own edit.")
    return Edit([key], edit)


def _any_active(key: Variable, edit: Edit, flags: Mapping[Variable, Tensor | None]) -> Tensor | None:
    found = [flags[v] for v in variables_of(key, edit)]
    if any(flag is None for flag in found):
        return None
    return torch.stack([flag for flag in found if flag is not None]).any(0)
