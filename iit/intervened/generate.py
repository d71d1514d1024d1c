"""Generation under edits: which columns of a step's forward an edit acts on, and the tokens in the caller's layout."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iit.intervened.batch import Batch
from iit.intervened.edit import Edit
from iit.intervened.positions import Columns
from iit.network.answering import IGNORED

SCOPES = ("prompt", "generated", "all")
"""Where edits act: at their sites in the prompt; at every new token; both."""

# With these transformers runs the network in other portions than the prompt and then one token, or around its hooks.
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

Given = Tensor | dict[str, Tensor] | None


def check(network: nn.Module, edits: Iterable[Edit], batch: Batch, scope: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for what generation under edits cannot do, before anything runs."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is none of {', '.join(SCOPES)}.")
    config: Any = getattr(network, "config", None)
    if not callable(getattr(network, "generate", None)) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(network).__name__} is no transformers decoder that can generate.")
    asked = options.get("generation_config")
    settings = asked or getattr(network, "generation_config", None)
    for name in _OTHER_WAYS:
        if options.get(name, getattr(settings, name, None)) is not None:
            raise ValueError(f"generate under edits does not go together with {name!r}; leave it out, or give {name}=None.")
    cache = options.get("cache_implementation", getattr(asked, "cache_implementation", None))
    if cache not in (None, "dynamic", "hybrid"):
        raise ValueError(f"generate under edits does not go together with cache_implementation={cache!r}; leave it out.")
    if batch.lengths is None or set(batch.kwargs) - {"attention_mask"} != {"input_ids"}:
        raise ValueError(f"generate takes input_ids and their attention_mask (and `positions`); got {sorted(batch.kwargs)}.")
    for edit in edits:
        if edit.intervention.collects:
            raise ValueError(
                "CollectIntervention does not edit: there is nothing for it to do in generate; use `run` or `capture`."
            )
        if any(site.component == "attention_weight" for site in edit.sites):
            raise ValueError("attention_weight grows with every token: it cannot be edited in generate.")
        if edit.joint and scope != "prompt":
            raise ValueError(
                f"A joint edit takes several positions at once; a new token is one. Use scope='prompt', not {scope!r}."
            )


class Generation:
    """One call of `generate` under edits.

    Prompts are left-padded, so that every new token is one column. transformers repeats each example for its beams or samples
    in consecutive rows and keeps them there when it reorders beams: row r belongs to example r // rows_per_example.
    """

    def __init__(self, batch: Batch, scope: str):
        assert batch.lengths is not None
        self._batch, self._scope = batch, scope
        self._n_prompt = batch.tokens.shape[1]
        self._shift = self._n_prompt - batch.lengths
        steps = torch.arange(self._n_prompt, device=batch.tokens.device)
        rolled = (steps - self._shift.unsqueeze(1)) % self._n_prompt
        self.inputs = {
            "input_ids": batch.kwargs["input_ids"].gather(1, rolled),
            "attention_mask": (steps >= self._shift.unsqueeze(1)).long(),
        }
        self._forwards, self._start, self._n_columns = 0, 0, 0

    def follow(self, network: nn.Module) -> Any:
        """Watch the network's forwards; returns the hook's handle."""

        def begins(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._n_columns, total = kwargs["input_ids"].shape[1], self._n_prompt + self._forwards
            if self._n_columns not in (1 if self._forwards else total, total):
                raise RuntimeError(f"A step of generate ran {self._n_columns} tokens, expected 1 or {total}.")
            self._start = total - self._n_columns
            self._forwards += 1

        return network.register_forward_pre_hook(begins, with_kwargs=True)

    def left(self, place: Columns) -> Columns:
        """Columns of the right-padded batch in the left-padded one."""
        if isinstance(place.index, Tensor):
            index = torch.where(place.index == IGNORED, IGNORED, place.index + self._shift.unsqueeze(1))
        else:
            index = torch.arange(self._n_prompt, device=self._shift.device).expand(self._batch.size, -1)
        return replace(place, index=index, tokens=None)

    def editor(
        self,
        edit: Edit,
        place: Columns,
        source: Given | list[Tensor],
        active: Any,
    ) -> Callable[[Tensor], Tensor]:
        """What a site's hook does.

        place: in the right-padded batch. source, active: of the examples; a list holds what stands for the source at the same
        columns. Raises ValueError where new tokens are edited and a source has several positions.
        """
        if self._scope != "prompt" and isinstance(source, Tensor | dict):
            for tensor in [source] if isinstance(source, Tensor) else source.values():
                if tensor.shape[1] != 1:
                    raise ValueError(
                        f"Site {place.site} reads {tensor.shape[1]} positions of the source; for scope={self._scope!r} it must be one, "
                        "which is used for every new token."
                    )
        place = self.left(place)

        def edited(activation: Tensor) -> Tensor:
            if activation.shape[1] != self._n_columns:
                raise RuntimeError(
                    f"Site {place.site} has {activation.shape[1]} positions in a step over {self._n_columns} tokens: it cannot be "
                    "edited in generate."
                )
            copies = activation.shape[0] // self._batch.size
            flags = _repeated(active, copies)
            if self._scope != "generated" and self._start == 0:
                rows = replace(place, index=_repeated(place.index, copies))
                given = rows.read(source[0]) if isinstance(source, list) else _repeated(source, copies)
                activation = rows.write(activation, edit.apply(rows.read(activation), given, flags))
            n_old = max(self._n_prompt - self._start, 0)
            if self._scope != "prompt" and n_old < self._n_columns:
                new = activation[:, n_old:]
                given = source[0][:, n_old:] if isinstance(source, list) else _spread(_repeated(source, copies), new.shape[1])
                activation = torch.cat([activation[:, :n_old], edit.apply(new, given, flags)], 1)
            return activation

        return edited

    def restored(self, ids: Any, prompts: Tensor) -> Any:
        """What `generate` returned, with each prompt as the caller laid it out."""
        sequences = ids if isinstance(ids, Tensor) else ids.sequences
        prompts = prompts.to(sequences.device).repeat_interleave(len(sequences) // len(prompts), 0)
        sequences = torch.cat([prompts, sequences[:, self._n_prompt :]], 1)
        if isinstance(ids, Tensor):
            return sequences
        ids.sequences = sequences
        return ids


def _repeated(value: Any, copies: int) -> Any:
    if isinstance(value, dict):
        return {key: _repeated(item, copies) for key, item in value.items()}
    return value if value is None else value.repeat_interleave(copies, 0)


def _spread(source: Given, n: int) -> Given:
    """The one position of a source, for each of n new tokens."""
    if isinstance(source, dict):
        return {block: tensor.expand(-1, n, -1) for block, tensor in source.items()}
    return None if source is None else source.expand(-1, n, -1)
