"""Generation under edits.

It decides on which columns of a step's forward an edit acts, and returns the tokens in the caller's
layout. It collects activations at the prompt's and at the new tokens.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from iit.batch import IGNORED, Batch, behind_bridge
from iit.intervened.edit import Edit
from iit.intervened.edited_run import EditedRun, SiteEdit
from iit.intervened.observe import Activations
from iit.intervened.positions import NEW_ROLE, SiteColumns
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

# With these options a row does not say where its text ends, or it takes the place of another.
_NOT_COLLECTED = ("stop_strings", "stopping_criteria", "num_beams")


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


def is_new(site: Site) -> bool:
    """Whether a site is at new tokens."""
    return NEW_ROLE.fullmatch(str(site.position)) is not None


def _setting(network: nn.Module, options: Mapping[str, Any], name: str) -> Any:
    """An option of `generate`: what the call says, else its config, else the network's."""
    value = getattr(options.get("generation_config"), name, None)
    if value is None:
        value = getattr(getattr(network, "generation_config", None), name, None)
    return options.get(name, value)


def check_generation(
    network: nn.Module, edits: Iterable[Edit], batch: Batch, scope: str, options: Mapping[str, Any]
) -> None:
    """Raises ValueError for what generation under edits cannot do, before anything runs."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is none of {', '.join(SCOPES)}.")
    if not callable(getattr(network, "generate", None)) or batch.encoder_decoder:
        raise ValueError(f"{type(network).__name__} is no transformers decoder that can generate.")

    for name in _OTHER_WAYS:
        if _setting(network, options, name) is not None:
            raise ValueError(
                f"generate under edits does not go together with {name!r}; leave it out, or "
                f"give {name}=None."
            )

    cache = getattr(options.get("generation_config"), "cache_implementation", None)
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
            f"The prompts have the roles {list(batch.positions)}, and in generate `new` and "
            "`new[k]` are the tokens that are written; give the role another name."
        )

    n_new = _setting(network, options, "max_new_tokens") or math.inf
    for edit in edits:
        for name in _NOT_COLLECTED:
            if edit.intervention.collects and _setting(network, options, name) not in (None, 1):
                raise ValueError(
                    f"{name!r} does not go together with collecting: which step wrote a row's "
                    "tokens is not known. Leave it out, or `capture` the finished texts."
                )
        if any(site.component == "attention_weight" for site in edit.sites):
            raise ValueError(
                "attention_weight grows with every token: it cannot be edited in generate."
            )
        if edit.joint and (scope != "prompt" or any(map(is_new, edit.sites))):
            raise ValueError(
                "A joint edit takes several positions at once; a new token is one. Use "
                f"scope='prompt', not {scope!r}, and a position in the prompt."
            )
        for site in edit.sites:
            new = NEW_ROLE.fullmatch(str(site.position))
            if new and int(new[1] or 0) + 1 >= n_new:
                raise ValueError(
                    f"Site {site}: with max_new_tokens={n_new} there is no such activation, "
                    "because the last token is never read back. Raise max_new_tokens."
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
        if (scope == "prompt" and not is_new(site)) or _by_token(site_edit):
            continue
        for source in site_edit.sources.values():
            if source.shape[1] != 1:
                raise ValueError(
                    f"Site {site} reads {source.shape[1]} positions of the source, and new tokens "
                    "are edited. It must be one, which is used for every new token; or edit at "
                    "'new', and read the source at 'new'."
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

    end = _setting(network, options, "eos_token_id")
    ends = torch.isin(new, torch.as_tensor(-1 if end is None else end, device=new.device))
    # Behind a row's first end token there is padding, which may be the same token.
    n_new = (ends.cumsum(1) <= ends).sum(1)
    texts = None
    if tokenizer is not None:
        rows = [row[:n] for row, n in zip(new.tolist(), n_new.tolist(), strict=True)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return Generated(ids, sequences, n_new, texts, *process.collected(n_new))


def _by_token(site_edit: SiteEdit) -> bool:
    """Whether each new token of the base takes the source's new token of the same number."""
    return site_edit.columns.site.position == "new" == site_edit.source_site.position


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
        self.recorded: dict[SiteEdit, list[Tensor]] = defaultdict(list)

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
        site, collects = site_edit.columns.site, site_edit.edit.intervention.collects
        if site_edit.idle and not collects:
            return None
        if activation.shape[1] != self._n_columns:
            raise RuntimeError(
                f"Site {site} has {activation.shape[1]} positions in a step over "
                f"{self._n_columns} tokens: it cannot be edited in generate."
            )
        if collects:
            parts = self.recorded[site_edit]
            # Without a cache a forward runs earlier tokens again.
            n_again = sum(part.shape[1] for part in parts) - self._start
            if not 0 <= n_again < self._n_columns:
                raise RuntimeError(f"The module of {site} does not run once in each forward.")
            parts.append(activation[:, n_again:].clone())
            return None
        # Beams or samples of each example.
        repeated = self._repeated(site_edit, len(activation) // len(self._shift))

        # The forward begins at the prompt, so the sites in it are edited.
        at_new = NEW_ROLE.fullmatch(str(site.position))
        if at_new is None and self._scope != "generated" and self._start == 0:
            columns = repeated.columns
            at_columns = None if skipped is None else columns.read(skipped)
            new = repeated.apply(columns.read(activation), at_columns)
            activation = columns.write(activation, new)

        # The new tokens that this forward runs, by number.
        first = self._start - self._n_prompt
        tokens = set(range(max(first, 0), first + self._n_columns))
        if at_new is not None and at_new[1] is not None:
            tokens &= {int(at_new[1])}
        elif at_new is None and self._scope == "prompt":
            tokens = set()
        # A copy: the network's own tensor stays as it is.
        activation = activation.clone()
        for k in tokens:
            # One token at a time, so that nothing depends on the cache.
            column = slice(k - first, k - first + 1)
            at_column = None if skipped is None else skipped[:, column]
            edit = _at_token(repeated, k) if _by_token(repeated) else repeated
            activation[:, column] = edit.apply(activation[:, column], at_column)
        return activation

    def collected(self, n_new: Tensor) -> tuple[Activations, dict[Site, Tensor]]:
        """What was recorded, and the positions that it belongs to, as in `Generated`.

        Arguments:
            n_new: LongTensor[row], how many tokens each row wrote.
        """
        copies = len(n_new) // len(self._shift)
        shift = self._shift.repeat_interleave(copies).unsqueeze(1)
        lengths = self._n_prompt - shift
        # The last new token is never read back.
        stop = lengths + n_new.unsqueeze(1) - 1
        activations, positions = Activations({}), {}
        for site_edit, parts in self.recorded.items():
            site, index = site_edit.columns.site, site_edit.columns.index
            if index is None or site.position is None:
                # Every new token, and those of the prompt where the site names no position.
                first = lengths if is_new(site) else torch.zeros_like(lengths)
                steps = torch.arange(int((stop - first).max()), device=stop.device)
                position = first + steps
            else:
                position = index.repeat_interleave(copies, 0)
            position = torch.where(position < stop, position, IGNORED)
            present = position != IGNORED
            columns = SiteColumns(site, torch.where(present, position + shift, IGNORED))
            activations[site] = columns.read(torch.cat(parts, 1))
            activations.counts[site] = present.sum(1)
            positions[site] = position
        return activations, positions

    def _repeated(self, site_edit: SiteEdit, copies: int) -> SiteEdit:
        """The site edit for each row of a forward, with columns of the left-padded prompts."""

        def repeated(tensor: Any) -> Any:
            return None if tensor is None else tensor.repeat_interleave(copies, 0)

        index = site_edit.columns.index
        if index is None:
            # No prompt is padded: every column is a position.
            steps = torch.arange(self._n_prompt, device=self._shift.device)
            index = steps.expand(len(self._shift), -1)
        index = torch.where(index == IGNORED, index, index + self._shift.unsqueeze(1))
        return replace(
            site_edit,
            columns=SiteColumns(site_edit.columns.site, repeated(index)),
            flags={v: repeated(flag) for v, flag in site_edit.flags.items()},
            sources={v: repeated(source) for v, source in site_edit.sources.items()},
            counts={v: repeated(count) for v, count in site_edit.counts.items()},
        )


def _at_token(site_edit: SiteEdit, k: int) -> SiteEdit:
    """The edit of new token k by the source's new token k; none where the source wrote fewer."""
    flags, sources = dict(site_edit.flags), {}
    for variable, source in site_edit.sources.items():
        n, flag, count = source.shape[1], flags[variable], site_edit.counts[variable]
        count = torch.as_tensor(n if count is None else count, device=source.device)
        present = (count > k).expand(len(source))
        flags[variable] = present if flag is None else flag & present
        # Zeros behind the longest source, where no example is active.
        sources[variable] = pad(source, (0, 0, 0, 1))[:, min(k, n)].unsqueeze(1)
    return replace(site_edit, flags=flags, sources=sources)
