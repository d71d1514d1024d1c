"""Generation under edits.

It decides on which columns of a step's forward an edit acts, and returns the tokens in the caller's
layout. It collects activations at the prompt's and at the new tokens.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iit.batch import IGNORED, Batch, behind_bridge, map_tensors
from iit.intervened.edit import Edit
from iit.intervened.edited_run import EditedRun, SiteEdit
from iit.intervened.observe import Activations
from iit.intervened.positions import NEW_ROLE, SiteColumns, new_tokens
from iit.network.components import transformer_in
from iit.site import Site

SCOPES = ("prompt", "generated", "all")
"""Where edits act: at their sites in the prompt, at every new token, or at both.

An edit at the position `new` or `new[k]` acts there, whatever the scope.
"""

# With these options transformers runs the network otherwise than on the prompt and then on one
# token at a time, or it runs around its hooks.
_OTHER_WAYS = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "custom_generate",
    "prefill_chunk_size",
    "compile_config",
    "guidance_scale",
    "past_key_values",
    "inputs_embeds",
)

# With these a row does not say where its text ends, or it takes the place of another.
_NOT_COLLECTED = ("num_beams", "stop_strings", "stopping_criteria", "generation_config")


class Generated(NamedTuple):
    """What a collecting `generate` returns. A row is a prompt, or one of its samples.

    The last token that a row writes is never read back: it has no activation. Neither has the
    padding behind it. There positions are −100, and activations zero.

    Arguments:
        output: what `generate` returns without collecting.
        sequences: LongTensor[row, prompt + new], with the prompts as the caller laid them out.
        n_new: LongTensor[row], how many tokens each row wrote, its end token included.
        texts: what each row wrote; None where no tokenizer is known.
        activations: {site: Tensor[row, position, width]}, a source for further runs.
        positions: {site: LongTensor[row, position]}, what each activation belongs to, counted from
            the prompt's first token. New token k stands at the prompt's length plus k.
    """

    output: Any
    sequences: Tensor
    n_new: Tensor
    texts: list[str] | None
    activations: Activations
    positions: dict[Site, Tensor]

    def __repr__(self) -> str:
        return f"Generated({self.n_new.tolist()} new tokens: {self.texts}; {self.activations})"


def check_generation(
    network: nn.Module,
    edits: Collection[Edit],
    batch: Batch,
    scope: str,
    options: Mapping[str, Any],
) -> None:
    """Raises ValueError for what generation under edits cannot do, before anything runs."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is none of {', '.join(SCOPES)}.")
    if not callable(getattr(network, "generate", None)) or batch.encoder_decoder:
        raise ValueError(f"{type(network).__name__} is no transformers decoder that can generate.")

    config_option = options.get("generation_config")
    # The network's own settings count where the call names no others.
    settings = config_option or getattr(network, "generation_config", None)
    collects = any(edit.intervention.collects for edit in edits)
    for name in (*_OTHER_WAYS, *_NOT_COLLECTED * collects):
        value = options.get(name, getattr(settings, name, None))
        if value is not None and (name, value) != ("num_beams", 1):
            raise ValueError(
                f"generate under edits{' that collects' * collects} does not go together with "
                f"{name!r}; leave it out, or give {name}=None."
            )

    cache = getattr(config_option, "cache_implementation", None)
    cache = options.get("cache_implementation", cache)
    if cache not in (None, "dynamic", "hybrid"):
        raise ValueError(
            "generate under edits does not go together with "
            f"cache_implementation={cache!r}; leave it out."
        )
    if batch.lengths is None or set(batch.kwargs) - {"attention_mask"} != {"input_ids"}:
        raise ValueError(
            "generate takes input_ids and their attention_mask (and `positions`); got "
            f"{sorted(batch.kwargs)}."
        )

    if any(map(NEW_ROLE.fullmatch, batch.positions)):
        raise ValueError(
            "In generate `new` and `new[k]` are the tokens that are written; give the role of the "
            "prompts another name."
        )

    for edit in edits:
        for site in edit.sites:
            if site.component == "attention_weight":
                raise ValueError(
                    "attention_weight grows with every token: it cannot be edited or collected in "
                    "generate."
                )
            if edit.joint and scope != "prompt":
                raise ValueError(
                    "A joint edit takes several positions at once; a new token is one. Use "
                    f"scope='prompt', not {scope!r}."
                )


def generated(
    run: EditedRun, prompts: Tensor, scope: str, options: dict[str, Any], tokenizer: Any
) -> Any:
    """What the network's `generate` returns under the edits.

    Arguments:
        prompts: LongTensor[batch, seq], as the caller laid them out.
        options: what transformers' `generate` takes.
        tokenizer: decodes what was written; None where none is known.

    Returns LongTensor[row, prompt + new], or what the options ask for; `Generated` where anything
    is collected.

    Raises ValueError where new tokens are edited and a source has several positions.
    """
    network = behind_bridge(run.resolved.network)
    settings = getattr(network, "generation_config", None)
    if getattr(settings, "cache_implementation", None) is not None:
        # A static cache that the network's own settings ask for is a matter of speed.
        options["cache_implementation"] = "dynamic"
    for site_edit in run.site_edits:
        site = site_edit.columns.site
        if (scope != "prompt" or new_tokens(site)) and site_edit.source_site.position != "new":
            for source in site_edit.sources.values():
                if source.shape[1] != 1:
                    raise ValueError(
                        f"Site {site} reads {source.shape[1]} positions of the source, and new "
                        "tokens are edited. It must be one, which is used for every new token; or "
                        "read the source at 'new'."
                    )
    process = Generation(run.batch, scope)
    with ExitStack() as stack:
        stack.enter_context(run.attached(process.edited))
        stack.callback(process.follow(transformer_in(network)).remove)
        ids = network.generate(**process.inputs, **options)
    sequences = ids if isinstance(ids, Tensor) else ids.sequences
    # [batch · num_return_sequences, seq], each prompt as the caller laid it out.
    prompts = prompts.to(sequences.device).repeat_interleave(len(sequences) // len(prompts), 0)
    new = sequences[:, prompts.shape[1] :]
    sequences = torch.cat([prompts, new], 1)
    if isinstance(ids, Tensor):
        ids = sequences
    else:
        ids.sequences = sequences
    if not process.recorded:
        return ids

    end = options.get("eos_token_id", network.generation_config.eos_token_id)
    ends = torch.isin(new, torch.as_tensor(-1 if end is None else end, device=new.device))
    # Behind a row's first end token there is padding, which may be the same token.
    n_new = (ends.cumsum(1) <= ends).sum(1)
    texts = None
    if tokenizer is not None:
        # Without the end token, and the padding behind it.
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return Generated(ids, sequences, n_new, texts, *process.collected(n_new))


class Generation:
    """One call of `generate` under edits.

    Prompts are left-padded, so every new token is one column. transformers repeats each example for
    its beams or samples in consecutive rows, and keeps them there when it reorders beams. Row r
    belongs to example r // rows_per_example.
    """

    def __init__(self, batch: Batch, scope: str):
        self._scope = scope
        self._n_prompt = batch.tokens.shape[1]
        self.inputs, self._shift = batch.left_padded()
        # How many forwards ran; the first column and the number of columns of the one that runs.
        self._forwards, self._start, self._n_columns = 0, 0, 0
        # {what collects: Tensor[row, column, width] of each forward, the columns that it adds}.
        self.recorded: dict[SiteEdit, list[Tensor]] = {}

    def follow(self, network: nn.Module) -> Any:
        """Watch the network's forwards: which columns of the sequence each one runs.

        Returns the hook's handle.
        """

        def begins(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._n_columns = kwargs["input_ids"].shape[1]
            total = self._n_prompt + self._forwards
            # With a cache each step after the first runs one token; without one, all tokens so far.
            if self._n_columns not in (1 if self._forwards else total, total):
                raise RuntimeError(
                    f"A step of generate ran {self._n_columns} tokens, expected 1 or {total}."
                )
            self._start = total - self._n_columns
            self._forwards += 1

        return network.register_forward_pre_hook(begins, with_kwargs=True)

    def edited(
        self, site_edit: SiteEdit, activation: Tensor, skipped: Tensor | None
    ) -> Tensor | None:
        """What a site's hook does with an activation, as a `Hook`."""
        site = site_edit.columns.site
        if activation.shape[1] != self._n_columns:
            raise RuntimeError(
                f"Site {site} has {activation.shape[1]} positions in a step over "
                f"{self._n_columns} tokens: it cannot be edited in generate."
            )
        if site_edit.edit.intervention.collects:
            parts = self.recorded.setdefault(site_edit, [])
            if len(parts) + 1 != self._forwards:
                raise RuntimeError(f"The module of {site} does not run once in each forward.")
            # Behind the prompt each forward adds one token, also where it runs all again.
            parts.append((activation[:, -1:] if parts else activation).clone())
            return None
        if site_edit.idle:
            return None
        # Beams or samples of each example.
        repeated = self._repeated(site_edit, len(activation) // len(self._shift))

        # The forward begins at the prompt, so the sites in it are edited.
        edits, new = [], new_tokens(site)
        if not new and self._scope != "generated" and self._start == 0:
            edits.append(repeated)
        # The new tokens that this forward runs, by number; one at a time, so that nothing depends
        # on the cache.
        first = self._start - self._n_prompt
        for k in range(max(first, 0), first + self._n_columns):
            if site.position in ("new", f"new[{k}]") if new else self._scope != "prompt":
                edits.append(_at_token(repeated, k, k - first))
        for edit in edits:
            at_columns = None if skipped is None else edit.columns.read(skipped)
            edited = edit.apply(edit.columns.read(activation), at_columns)
            activation = edit.columns.write(activation, edited)
        return activation

    def collected(self, n_new: Tensor) -> tuple[Any, Any]:
        """What was recorded, and the positions that it belongs to, as in `Generated`.

        Arguments:
            n_new: LongTensor[row], how many tokens each row wrote.
        """
        copies = len(n_new) // len(self._shift)
        shift = self._shift.repeat_interleave(copies).unsqueeze(1)
        # The last new token is never read back.
        stop = self._n_prompt + n_new.unsqueeze(1) - 1
        activations, positions = Activations({}), {}
        for site_edit, parts in self.recorded.items():
            site = site_edit.columns.site
            index = self._repeated(site_edit, copies).columns.index
            if site.position in (None, "new"):
                # Every new token, and those of the prompt where the site names no position.
                first = self._n_prompt if site.position else shift
                # One column at least, which may be absent in all.
                longest = max(int((stop - first).max()), 1)
                index = first + torch.arange(longest, device=stop.device)
            assert index is not None
            absent = (index < 0) | (index >= stop)
            columns = SiteColumns(site, index.masked_fill(absent, IGNORED))
            activations[site] = columns.read(torch.cat(parts, 1))
            activations.counts[site] = (~absent).sum(1)
            positions[site] = (index - shift).masked_fill(absent, IGNORED)
        return activations, positions

    def _repeated(self, site_edit: SiteEdit, copies: int) -> SiteEdit:
        """The site edit for each row of a forward, with columns of the left-padded prompts."""

        index = site_edit.columns.index
        if index is None:
            # No prompt is padded: every column is a position.
            steps = torch.arange(self._n_prompt, device=self._shift.device)
            index = steps.expand(len(self._shift), -1)
        index = torch.where(index == IGNORED, index, index + self._shift.unsqueeze(1))
        by_row = index, site_edit.flags, site_edit.sources, site_edit.counts
        index, flags, sources, counts = map_tensors(
            by_row, lambda tensor, _: tensor.repeat_interleave(copies, 0)
        )
        columns = SiteColumns(site_edit.columns.site, index)
        return replace(site_edit, columns=columns, flags=flags, sources=sources, counts=counts)


def _at_token(site_edit: SiteEdit, k: int, column: int) -> SiteEdit:
    """The edit of new token k, in a column of the forward.

    Where the source is read at `new`, it is by the source's token k. An example whose source wrote
    fewer tokens is not edited.
    """
    flags, sources = dict(site_edit.flags), dict(site_edit.sources)
    if site_edit.source_site.position == "new":
        for variable, source in site_edit.sources.items():
            n, count = source.shape[1], site_edit.counts[variable]
            count = torch.as_tensor(n if count is None else count, device=source.device)
            flag, present = flags[variable], (count > k).expand(len(source))
            flags[variable] = present if flag is None else flag & present
            # Behind the longest source no example is active.
            sources[variable] = source[:, min(k, n - 1)].unsqueeze(1)
    # The same column in every row.
    columns = SiteColumns(site_edit.columns.site, torch.tensor([[column]]), is_checked=False)
    return replace(site_edit, columns=columns, flags=flags, sources=sources)
