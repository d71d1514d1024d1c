"""The intervened network: a frozen network, and the edits that are done to its runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.batch import Batch, Inputs
from iit.intervened import saving, sharing
from iit.intervened.answers import (
    first_examples,
    logits_at_answers,
    reason_not_to_resume,
    resumed_logits,
)
from iit.intervened.edit import Edit, Variable, as_sites, sites_of, variables_of
from iit.intervened.edited_run import EditedRun, SiteEdit
from iit.intervened.generate import check_generation, generated
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import SiteColumns, columns, prepare_at
from iit.intervened.pyvene import read_pyvene
from iit.intervened.resume import first_block
from iit.intervened.sources import Active, SourceInputs, by_variable, flags_of, read_sources
from iit.intervened.store import ActivationStore
from iit.intervened.widths import check_joint, check_width
from iit.intervention import CollectIntervention, Intervention
from iit.network import Network
from iit.network.answering import with_answer
from iit.network.inputs import prepare
from iit.result.table import Shown, Table
from iit.site import Index, Site, Sites

N_COMPARED = 4
"""How many examples of the first batch are also run whole, to check the resumed run."""


class Run(NamedTuple):
    """What `IntervenedModel.run` returns.

    output: the network's own output object, with the edits.
    base_output: the network's own output object, without the edits.
    activations: {key of an edit: Tensor[batch, position, width]}, the activation before the edit.
        Several sites are concatenated along positions.
    """

    output: Any
    base_output: Any
    activations: dict[Variable, Tensor]


class IntervenedModel(Shown, nn.Module):
    """A frozen network and the edits that are done to its runs.

    `edited(base, sources)` runs the base with the sources' values swapped in.

    Arguments:
        network: a `LanguageModel`, a `Classifier`, a transformers model, or any `nn.Module`. It is
            held outside module registration: parameters, state dict and train mode of this object
            are those of the interventions alone.
        edits: {variable: Edit}, or {site: intervention}, which is short for one edit a site. An
            edit whose intervention has blocks serves the variables that its blocks name.
        source_grad: whether gradients also flow through the source runs.
        stored: keys of edits of `embedding_output` that every compared run has, such as a noise.
            The runs that the store keeps contain them (`under` of `ActivationStore`). Where the
            other edits begin at block 1 or later, a run resumes behind the stored ones, and does
            not repeat them.

    Attributes:
        store: an `ActivationStore`, or None, which it is unless it is set. `answer_logits` then
            reads what earlier runs have left: activations of sources, and the base's residual
            stream before the first edited block.
        variables: the variables that the edits serve.
        first_block: the block at which runs resume; None where the whole network has to run.

    Raises ValueError before anything runs: for a site the network lacks, an intervention of another
    width, a variable that is named twice, and `stored` edits elsewhere than at the embedding.
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
        # (the network that was given, its module). nn.Module does not register what a tuple holds,
        # so the network stays outside of parameters(), state_dict() and train().
        self._held = (network, network.model if isinstance(network, Network) else network)
        self.edits: dict[Variable, Edit] = {key: _edit(key, edit) for key, edit in edits.items()}
        self.source_grad = source_grad
        self.store: ActivationStore | None = None
        named: list[Variable] = []
        for key, edit in self.edits.items():
            named += variables_of(key, edit)
        self.variables: tuple[Variable, ...] = tuple(named)

        # Sources and flags are given by variable, so each name stands for one edit or block.
        twice = sorted({str(v) for v in named if named.count(v) > 1})
        if twice:
            raise ValueError(f"Variables {twice} are named by more than one edit or block.")
        self.resolved = Sites(self.network)
        for key, edit in self.edits.items():
            check_width(key, edit, self.resolved)
        for site in sites_of(self.edits[key] for key in stored):
            if site.component != "embedding_output":
                raise ValueError(
                    f"stored={sorted(map(str, stored))}: only edits of embedding_output come "
                    "before all blocks."
                )

        # Stored edits do not count: the store's runs already hold them. Where the other edits begin
        # at block 0, or there are none, all edits count.
        later = [edit for key, edit in self.edits.items() if key not in stored]
        self.first_block = first_block(self.network, later) or first_block(
            self.network, self.edits.values()
        )

        # At block 0 (or None) there is nothing to resume behind: every edit is then done in the run
        # itself.
        self.stored = frozenset(stored) if self.first_block else frozenset()

        # Shared interventions appear once; the order is the edits'.
        self.interventions = nn.ModuleList(
            dict.fromkeys(edit.intervention for edit in self.edits.values())
        )
        self._apply(lambda tensor: tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change the weights as `fn` does, but keep each edit's on the device of its first site."""

        def stay(device: torch.device, tensor: Tensor) -> Tensor:
            return tensor.to(device, fn(tensor).dtype)

        first_sites = {edit.intervention: edit.sites[0] for edit in reversed(self.edits.values())}
        for intervention, site in first_sites.items():
            intervention._apply(partial(stay, self.resolved[site].device), recurse)
        return self

    @property
    def network(self) -> nn.Module:
        """The module that runs: what was given, or its `model`."""
        return self._held[1]

    @property
    def studied(self) -> Network | None:
        """The `LanguageModel` or `Classifier` that was given; None where it was a bare module."""
        return self._held[0] if isinstance(self._held[0], Network) else None

    @property
    def needs_source(self) -> bool:
        """Whether any edit reads a source."""
        return any(edit.intervention.needs_source for edit in self.edits.values())

    def as_table(self) -> Table:
        """A line for each edit."""
        lines = []
        for key, edit in self.edits.items():
            intervention = edit.intervention
            names = f"{', '.join(map(str, variables_of(key, edit)))}"
            sites = f"{' + '.join(map(str, edit.sites))}"
            # Of a learned gate, the rank is how many coordinates it lets through.
            rank = f"{intervention.learned_rank()} of {intervention.width}"
            lines.append((names, sites, intervention.name, rank.replace("None of None", "whole")))
        title = f"{type(self).__name__} on {self.studied or type(self.network).__name__}"
        caption = f"{sum(map(Tensor.numel, self.parameters())):,} trainable weights"
        return Table(title, ("variable", "site", "intervention", "rank"), lines, caption, n_words=3)

    def forward(self, base: Inputs, sources: SourceInputs = None, active: Active = None) -> Any:
        """Run the edited base; returns the network's own output object, in the caller's layout."""
        batch = prepare(self.network, base)
        with self.edited_run(batch, sources, active).applied():
            output = batch.through(self.network)
        return batch.restored(output)

    def run(self, base: Inputs, sources: SourceInputs = None, active: Active = None) -> Run:
        """Run the base without and with the edits, and return what each edit acted on.

        Raises ValueError where one edit's sites differ in width, and whatever a call raises.
        """
        batch = prepare(self.network, base)
        base_output = batch.restored(batch.through(self.network))
        run = self.edited_run(batch, sources, active)
        with run.applied() as per_site:
            output = batch.restored(batch.through(self.network))
        return Run(output, base_output, _by_key(run, per_site))

    def generate(
        self,
        base: Inputs,
        sources: SourceInputs = None,
        active: Active = None,
        *,
        scope: str = "prompt",
        collect: Site | Sequence[Site] = (),
        **options: Any,
    ) -> Any:
        """Generate under the edits, with the network's own `generate`.

        Arguments:
            sources: as for any run. A source that is read at new tokens is given as the
                `activations` that a collecting `generate` has returned. Where it is read at `new`,
                new token k takes the source's token k, and tokens beyond the source's are not
                edited.
            scope: "prompt" edits the sites' positions in the prompt. "generated" edits every new
                token as it is read back. "all" does both. A role or position selects in the prompt
                only; an edit that reads a source there uses that one position for every new token.
                Whatever the scope, a site at `new[k]` is edited at new token k only, and a site at
                `new` at each. The last token of a text is never read back, and not edited.
            collect: sites to read after all edits. Without a position they are read at the prompt
                and the new tokens. A `CollectIntervention` is collected, too, as its edit sees it.
            options: what transformers' `generate` takes. Greedy search and beams give the same
                tokens whatever the batch; sampling repeats for a fixed batch and seed. An `answer`
                in the base is not read.

        Returns LongTensor[batch · num_return_sequences, prompt + new], with the prompts as the
        caller laid them out; the output object instead where the options ask for one. Where
        anything is collected, returns a `Generated` with activations and their positions.

        Raises ValueError for an unknown scope, and for a network that does not generate. Raises it
        for options under which edits would be missed (an assistant, a static cache, …), and for
        edits that make no sense token by token. Raises it for beams and stop strings beside
        `collect`, and where a source did not write a `new[k]`.

        An example is the experiment `steering`: an edit adds the difference between the mean
        residual streams of texts about a subject and of other texts. Its page has the figures.
        """
        if collect:
            # These come behind all edits, so they see what the edits wrote.
            reads = {
                f"collect {site}": Edit(site, CollectIntervention()) for site in as_sites(collect)
            }
            model = IntervenedModel(self._held[0], {**self.edits, **reads})
            return model.generate(base, sources, active, scope=scope, **options)
        batch = prepare(self.network, base)
        check_generation(self.network, self.edits.values(), batch, scope, options)
        # `check_generation` has refused everything else.
        assert isinstance(base, Mapping)
        tokenizer = getattr(self.studied, "tokenizer", None)
        if tokenizer is not None:
            # It knows the padding token where the network's settings do not.
            options.setdefault("pad_token_id", tokenizer.pad_token_id)
        run = self.edited_run(replace(batch, is_continued=True), sources, active)
        return generated(run, base["input_ids"], scope, options, tokenizer)

    def edited_activations(
        self, base: Inputs, sources: SourceInputs = None, active: Active = None
    ) -> dict[Variable, Tensor]:
        """{key of an edit: Tensor[batch, position, width]}, the activation after that edit alone.

        Each edit acts on activations of the unedited base. Several sites of an edit are
        concatenated along positions.

        Raises ValueError where one edit's sites differ in width, and whatever a call raises.
        """
        # A site may be at a token of the base's answer.
        batch = prepare_at(self.network, base, self.resolved)
        run = self.edited_run(batch, sources, active)
        edited = {}
        for site_edits in run.sites.values():
            site_columns = {site_edit.columns.site: site_edit.columns for site_edit in site_edits}
            unedited = self.read(batch, site_columns)
            for site_edit in site_edits:
                edited[site_edit] = site_edit.apply(unedited[site_edit.columns.site])
        return _by_key(run, edited)

    def read(
        self, batch: Batch, site_columns: dict[Site, SiteColumns], *, grad: bool = False
    ) -> Activations:
        """Activations of the unedited network, from the `store` where it has them.

        Arguments:
            site_columns: {site: its columns in the batch}.
        """
        read = observe if self.store is None else self.store.read
        return read(self.resolved, batch, site_columns, grad=grad)

    def run_without_sources(self, batch: Batch, active: Active = None) -> EditedRun:
        """The edits of one batch, without the source activations that they read."""
        flags = flags_of(self.variables, active, batch)
        sites: dict[Variable, list[SiteEdit]] = {}
        for key, edit in self.edits.items():
            edit_flags = {variable: flags[variable] for variable in variables_of(key, edit)}
            partly = [flag for flag in edit_flags.values() if flag is not None]
            # A role may be absent in an example that no variable of this edit touches.
            touched = None
            if len(partly) == len(edit_flags):
                touched = torch.stack(partly).any(0)
            sites[key] = []
            for site, source in zip(edit.sites, edit.source_sites, strict=True):
                selected = columns(site, batch, touched)
                resolved = self.resolved[site]
                sites[key].append(SiteEdit(edit, resolved, selected, source, edit_flags))
        trains = any(p.requires_grad for p in (*self.parameters(), *self.network.parameters()))
        return EditedRun(batch, self.resolved, sites, flags, trains)

    def edited_run(
        self, batch: Batch, sources: SourceInputs = None, active: Active = None
    ) -> EditedRun:
        """The edits of one batch, ready to be applied.

        Everything about the input is checked, and the sources are run.

        Raises ValueError for what does not fit, before the network runs on the base.
        """
        run = self.run_without_sources(batch, active)
        for site_edit in run.site_edits:
            # A backward would run a checkpointed layer again without the edit's hooks.
            if torch.is_grad_enabled():
                site_edit.resolved.refuse_recomputed()
            check_joint(site_edit)
        named_sources = by_variable(self.edits, sources, run.flags)
        read_sources(run, named_sources, partial(self.read, grad=self.source_grad))
        return run

    def answer_logits(
        self, base: Inputs, sources: SourceInputs = None, active: Active = None
    ) -> Float[Tensor, "batch n_answer vocab"]:
        """Logits where the base's `answer` is read.

        The answer is teacher-forced, and a language model's head runs at these columns only.
        Without an answer the next token is read, or the tokens at the masks of a masked language
        model.

        With a `store`, only what the edits can change runs. Examples of the first batch that
        resumes at a block are also run whole, and compared.

        Returns Tensor[batch, n_answer, vocab]; Tensor[batch, 1, classes] on a network without
        tokens.

        Raises ValueError as `iit.network.answering.with_answer` does.
        """
        batch, answer_columns = with_answer(self.network, prepare(self.network, base))
        store, layer = self.store, self.first_block
        if (
            store is not None
            and layer
            and layer not in store.layers
            and store.refuses(self.network, batch) is None
        ):
            # Whenever the store runs a prompt, it keeps the residual stream before these blocks: a
            # prompt that is a source here may be a base later.
            store.layers |= {layer}
        run = self.edited_run(batch, sources, active)
        if store is None:
            return logits_at_answers([run], answer_columns)

        # The edits of `stored` are already in the store's runs.
        unstored = run.without(self.stored)
        reason = reason_not_to_resume(unstored, answer_columns, layer, store)
        if reason is not None or answer_columns is None or layer is None:
            store.tell(f"The whole network runs: {reason}.")
            return logits_at_answers([run], answer_columns)
        store.tell("Runs resume at the first block and the first position that are edited.")

        # The whole run below must draw the same random numbers as the resumed one.
        rng_state = torch.get_rng_state()
        logits = resumed_logits([unstored], answer_columns, layer, store)[0]
        if store.is_trusted(layer, run.flags):
            return logits

        # A shallow copy shares the edits; only its `store` differs.
        whole_model = copy(self)
        whole_model.store = None
        n = N_COMPARED
        # A user's own function may act otherwise on a part of the batch, so all of it is compared.
        if any(edit.intervention.custom_parts for edit in self.edits.values()):
            n = batch.size
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(rng_state)
            examples = map(partial(first_examples, n=n), (base, sources, active))
            whole = whole_model.answer_logits(*examples)
        if store.trusts(layer, run.flags, logits.detach()[:n], whole):
            return logits
        return whole_model.answer_logits(base, sources, active)

    def n_columns(self, base: Inputs, active: Active = None) -> Tensor | None:
        """What each example costs: how many positions of it a resumed run runs.

        A batch holds least padding where its examples are alike in this number.

        Returns LongTensor[batch]; None where runs do not resume.
        """
        batch = prepare(self.network, base)
        if self.first_block is None or batch.lengths is None:
            return None
        batch, answer_columns = with_answer(self.network, batch)
        if answer_columns is None:
            return None
        unstored = self.run_without_sources(batch, active).without(self.stored)
        first, stop = unstored.span(answer_columns)
        return stop - first

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `interventions.safetensors` and `README.md` (a model card) to a
        folder.

        An earlier save in the folder is replaced as a whole.

        Raises ValueError for interventions that cannot be saved, and FileExistsError when the
        folder holds other files.
        """
        sharing.save(self._saved(), folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload interventions",
    ) -> str:
        """Upload what `save_pretrained` writes in one commit.

        The repository is made where there is none. Files of an earlier save that this one lacks are
        deleted; other files stay.

        Arguments:
            revision: a branch, which is made where it is missing.
            token: by default the one that `hf auth login` left.

        Returns the commit's address.

        Raises ValueError for interventions that cannot be saved, and for private=True with a
        repository that is public.
        """
        return sharing.push(self._saved(), repo_id, private, revision, token, commit_message)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        network: Network | nn.Module,
        *,
        revision: str | None = None,
        types: Mapping[str, Any] | None = None,
        check_network: bool = True,
    ) -> Self:
        """Load a save from a folder or from the hub, in eval mode; no code of the folder is run.

        Arguments:
            network: the network it was saved for.
            revision: branch, tag or commit of a repository of the hub.
            types: the user's own bases, gates and operations by name, beside those of
                `iit.intervention`. Each gives all arguments of its constructor to
                `super().__init__`.
            check_network: whether another network than the one it was saved for is an error.

        Raises FileNotFoundError when there is neither such a folder nor such a repository, and for
        missing files. Raises ValueError for damaged or altered files, unknown types, and another
        network.

        >>> from iit.intervention import All, Identity, Intervention, Operation
        >>> class Scale(Operation):
        ...     def __init__(self, factor: float):
        ...         super().__init__(factor=factor)
        ...         self.factor = factor
        ...     def forward(self, base, source, activation):
        ...         return self.factor * base
        >>> halved = Intervention("Halved", Identity(), All(), Scale(0.5))
        >>> iit.IntervenedModel(network, {site: halved}).save_pretrained(folder)
        >>> iit.IntervenedModel.from_pretrained(folder, network, types={"Scale": Scale})
        """
        saved = saving.read_save(sharing.fetched(folder_or_hub_id, revision), types)
        if check_network:
            saving.check_network(saved.network, network)
        return cls._of(network, saved).eval()

    @classmethod
    def from_pyvene(
        cls,
        folder: str | Path,
        network: Network | nn.Module,
        positions: Sequence[str | Index] | Mapping[str | tuple[str, ...], str | Index],
        *,
        heads: Sequence[Index] | None = None,
    ) -> Self:
        """Load what pyvene 0.1 saved, in eval mode; no code of the folder is run.

        Arguments:
            network: the network it was made for.
            positions: one for each representation, because pyvene gets them only when it runs. The
                keys of a mapping name the variables.
            heads: one for each representation likewise; None for those that are not by head.

        Raises FileNotFoundError and ValueError as `iit.intervened.pyvene.read_pyvene`, which says
        what is carried over.
        """
        return cls(network, read_pyvene(folder, network, positions, heads)).eval()

    def _saved(self) -> saving.SaveContent:
        """What a folder of this model holds."""
        return saving.SaveContent(
            self.edits, saving.describe_network(self._held[0]), self.source_grad, None
        )

    @classmethod
    def _of(cls, network: Network | nn.Module, saved: saving.SaveContent) -> Self:
        """The inverse of `_saved`."""
        return cls(network, saved.edits, source_grad=saved.source_grad)


def _edit(key: Variable, edit: Edit | Intervention) -> Edit:
    if isinstance(edit, Edit):
        return edit
    if not isinstance(key, Site):
        raise ValueError(
            f"Variable {key!r} needs an `Edit(sites=…, intervention=…)`; only a Site may stand "
            "for its own edit."
        )
    return Edit([key], edit)


def _by_key(run: EditedRun, per_site: Mapping[SiteEdit, Tensor]) -> dict[Variable, Tensor]:
    """{key of an edit: activations of its sites}, concatenated along positions.

    Raises ValueError where the sites of an edit differ in width.
    """
    by_key = {}
    for key, site_edits in run.sites.items():
        parts = [per_site[site_edit].to(run.batch.device) for site_edit in site_edits]
        widths = {part.shape[-1] for part in parts}
        if len(widths) > 1:
            raise ValueError(
                f"The sites of {str(key)!r} differ in width {widths}; use `capture`, which keeps "
                "them apart."
            )
        by_key[key] = torch.cat(parts, 1)
    return by_key
