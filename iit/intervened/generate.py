"""Generation under edits.

It decides on which columns of a step's forward an edit acts, and returns the tokens in the caller's
layout.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iit.batch import IGNORED, Batch, behind_bridge
from iit.intervened.edit import Edit
from iit.intervened.edited_run import EditedRun, SiteEdit
from iit.intervened.positions import SiteColumns
from iit.network.components import transformer_in

SCOPES = ("prompt", "generated", "all")
"""Where edits act: at their sites in the prompt, at every new token, or at both."""

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


def check_generation(
    network: nn.Module, edits: Iterable[Edit], batch: Batch, scope: str, options: Mapping[str, Any]
) -> None:
    """Raises ValueError for what generation under edits cannot do, before anything runs."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is none of {', '.join(SCOPES)}.")
    if not callable(getattr(network, "generate", None)) or batch.encoder_decoder:
        raise ValueError(f"{type(network).__name__} is no transformers decoder that can generate.")

    config_option = options.get("generation_config")
    # The network's own settings count where the call names no others.
    settings = config_option or getattr(network, "generation_config", None)
    for name in _OTHER_WAYS:
        if options.get(name, getattr(settings, name, None)) is not None:
            raise ValueError(
                f"generate under edits does not go together with {name!r}; leave it out, or "
                f"give {name}=None."
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

    for edit in edits:
        if edit.intervention.collects:
            raise ValueError(
                "CollectIntervention does not edit: there is nothing for it to do in generate; use "
                "`run` or `capture`."
            )
        if any(site.component == "attention_weight" for site in edit.sites):
            raise ValueError(
                "attention_weight grows with every token: it cannot be edited in generate."
            )
        if edit.joint and scope != "prompt":
            raise ValueError(
                "A joint edit takes several positions at once; a new token is one. Use "
                f"scope='prompt', not {scope!r}."
            )


def generated(run: EditedRun, prompts: Tensor, scope: str, options: dict[str, Any]) -> Any:
    """What the network's `generate` returns under the edits.

    Arguments:
        prompts: LongTensor[batch, seq], as the caller laid them out.
        options: what transformers' `generate` takes.

    Raises ValueError where new tokens are edited and a source has several positions.
    """
    network = behind_bridge(run.resolved.network)
    settings = getattr(network, "generation_config", None)
    if getattr(settings, "cache_implementation", None) is not None:
        # A static cache that the network's own settings ask for is a matter of speed.
        options["cache_implementation"] = "dynamic"
    if scope != "prompt":
        for site_edit in run.site_edits:
            for source in site_edit.sources.values():
                if source.shape[1] != 1:
                    raise ValueError(
                        f"Site {site_edit.columns.site} reads {source.shape[1]} positions of the "
                        f"source; for scope={scope!r} it must be one, which is used for every new "
                        "token."
                    )
    process = Generation(run.batch, scope)
    with ExitStack() as stack:
        stack.enter_context(run.attached(process.edited))
        stack.callback(process.follow(transformer_in(network)).remove)
        ids = network.generate(**process.inputs, **options)
    sequences = ids if isinstance(ids, Tensor) else ids.sequences
    # [batch · num_return_sequences, seq], each prompt as the caller laid it out.
    prompts = prompts.to(sequences.device).repeat_interleave(len(sequences) // len(prompts), 0)
    sequences = torch.cat([prompts, sequences[:, prompts.shape[1] :]], 1)
    if isinstance(ids, Tensor):
        return sequences
    ids.sequences = sequences
    return ids


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
        if site_edit.idle:
            return None
        if activation.shape[1] != self._n_columns:
            raise RuntimeError(
                f"Site {site_edit.columns.site} has {activation.shape[1]} positions in a step over "
                f"{self._n_columns} tokens: it cannot be edited in generate."
            )
        # Beams or samples of each example.
        repeated = self._repeated(site_edit, len(activation) // len(self._shift))

        # The forward begins at the prompt, so the sites in it are edited.
        if self._scope != "generated" and self._start == 0:
            columns = repeated.columns
            at_columns = None if skipped is None else columns.read(skipped)
            new = repeated.apply(columns.read(activation), at_columns)
            activation = columns.write(activation, new)

        # How many of this forward's columns belong to the prompt.
        n_old = max(self._n_prompt - self._start, 0)
        if self._scope != "prompt" and n_old < self._n_columns:
            old, new = activation[:, :n_old], activation[:, n_old:]
            # The one position of a source is used for each of the new tokens.
            sources = {v: source.expand(new.shape) for v, source in repeated.sources.items()}
            if skipped is not None:
                skipped = skipped[:, n_old:]
            edit = replace(repeated, sources=sources).apply(new, skipped)
            activation = torch.cat([old, edit], 1)
        return activation

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
        )
