"""Where a site's positions lie in a batch, and how activations are read and written there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from iit.batch import IGNORED, Batch, Inputs, columns_from_start
from iit.network.answering import ANSWER_ROLE, with_answer
from iit.network.inputs import prepare
from iit.site import Site

NEW_ROLE = re.compile(r"new(?:\[(0|[1-9]\d*)\])?")
"""Positions at the tokens that `generate` writes: `new[k]` is token k of them, `new` is all."""


@dataclass(frozen=True)
class SiteColumns:
    """The columns of an activation's position axis that a site selects.

    Arguments:
        site: the site.
        index: LongTensor[batch, n] of columns, −100 where an example has fewer positions, or
            LongTensor[1, n], the same in each example; None for every position.
        is_checked: whether the index is known to count from 0 and to lie inside the example. On
            networks without tokens only the run can tell.
        token_shape: (batch, seq), the shape of the tokens that the index counts. The shape of an
            activation is compared with it. None where there are no tokens.
    """

    site: Site
    index: Tensor | None
    is_checked: bool = True
    token_shape: tuple[int, int] | None = None

    @property
    def n_positions(self) -> int | None:
        """The largest number of positions of an example; None where only the run can tell."""
        if self.index is not None:
            return self.index.shape[1]
        return None if self.token_shape is None else self.token_shape[1]

    def _located(self, activation: Tensor) -> tuple[Tensor, Tensor | None]:
        """The activation as [batch, token, width], and its columns, LongTensor[batch, n].

        An activation that its module sees as (batch·tokens, width) is unflattened. The columns are
        None for all of them, and for a module with positions of its own (pooled, or of another
        sequence), which is taken whole.

        Raises ValueError where tokens are to be picked from an activation with other positions.
        """
        n_rows, n_columns = activation.shape[:2]
        if self.token_shape not in (None, (n_rows, n_columns)):
            n_prompts, n_tokens = self.token_shape
            if (n_rows, n_columns) == (n_prompts * n_tokens, 1):
                # [batch·tokens, 1, width] → [batch, token, width]
                activation = activation.reshape(n_prompts, n_tokens, -1)
            elif self.site.position is None:
                return activation, None
            else:
                raise ValueError(
                    f"Site {self.site}: the module's activations are {n_rows}×{n_columns}, the "
                    f"batch holds {n_prompts}×{n_tokens} tokens: its positions are not the "
                    "prompt's. Leave `position` out."
                )
        if self.index is None:
            return activation, None
        index = self.index.to(activation.device)
        if not self.is_checked and len(index) == 1:
            index = index.expand(n_rows, -1)
        if len(index) != len(activation):
            raise ValueError(
                f"Site {self.site}: its module sees {n_rows} rows where the batch has "
                f"{len(index)} examples; name a module that sees one row an example."
            )
        if not self.is_checked:
            # The activation itself says how many positions there are.
            lengths = torch.full((n_rows,), n_columns, device=activation.device)
            index = columns_from_start(index, lengths, index == IGNORED, f"Site {self.site}")
        return activation, index

    def read(
        self, activation: Float[Tensor, "row column width"]
    ) -> Float[Tensor, "batch position width"]:
        """A copy of the activation at these columns; zeros where an example has fewer."""
        activation, index = self._located(activation)
        if index is None:
            # The network may later change its own activation in place.
            return activation.clone()
        # −100 is no column, so absent entries read column 0 and are zeroed below.
        columns = index.clamp(min=0).unsqueeze(-1).expand(-1, -1, activation.shape[-1])
        return activation.gather(1, columns).masked_fill((index == IGNORED).unsqueeze(-1), 0)

    def write(
        self,
        activation: Float[Tensor, "row column width"],
        new: Float[Tensor, "batch position width"],
    ) -> Float[Tensor, "row column width"]:
        """A copy of the activation with `new` at these columns, in the activation's own shape."""
        by_token, index = self._located(activation)
        if index is None:
            # `new` may be the source itself, which the network must not change.
            return new.clone().reshape(activation.shape)
        n_columns = by_token.shape[1]
        absent = index == IGNORED
        if bool(absent.any()):
            # Absent entries land in a column that is cut off again.
            by_token = torch.cat([by_token, torch.zeros_like(by_token[:, :1])], 1)
            index = index.masked_fill(absent, n_columns)
        columns = index.unsqueeze(-1).expand_as(new)
        written = by_token.scatter(1, columns, new)[:, :n_columns]
        # Modules may call `view`, which needs contiguous memory.
        return written.contiguous().reshape(activation.shape)


def prepare_at(network: nn.Module, inputs: Inputs, sites: Iterable[Site]) -> Batch:
    """The batch; where a site is at a token of the answer, the answer is teacher-forced."""
    batch = prepare(network, inputs)
    for site in sites:
        for role in site.roles:
            if role not in batch.positions and ANSWER_ROLE.fullmatch(role):
                return with_answer(network, batch)[0]
    return batch


def new_tokens(site: Site) -> re.Match[str] | None:
    """The match of `NEW_ROLE` with the site's position; None for a site in the prompt."""
    return NEW_ROLE.fullmatch(str(site.position))


def columns(site: Site, batch: Batch, active: Bool[Tensor, "batch"] | None = None) -> SiteColumns:
    """The columns of a site's position in a batch.

    Arguments:
        active: the examples in which a role has to be present; None for every one.

    Raises ValueError for these positions:

    - a role that the batch lacks, or that is absent in an (active) example;
    - new tokens, where nothing is written;
    - several roles of which one is several tokens;
    - a role in a decoder that has its own tokens;
    - a position that occurs twice;
    - a position outside an example's real tokens.
    """
    batch = _sequence(site, batch)
    lengths = batch.lengths
    token_shape = None if lengths is None else (batch.tokens.shape[0], batch.tokens.shape[1])
    new = new_tokens(site)
    if new and batch.is_continued:
        assert lengths is not None
        # Only the run tells how many tokens it writes.
        index = (lengths + int(new[1])).unsqueeze(1) if new[1] else None
        return SiteColumns(site, index)
    if site.position is None:
        return SiteColumns(site, _every(batch), token_shape=token_shape)
    if site.roles:
        role_columns = [_role(site, role, batch, active) for role in site.roles]
        index = torch.cat(role_columns, 1)
        if len(role_columns) > 1 and index.shape[1] > len(role_columns):
            n_tokens = [columns.shape[1] for columns in role_columns]
            wide = site.roles[n_tokens.index(max(n_tokens))]
            raise ValueError(
                f"Site {site}: of several roles each must be one token; {wide!r} has more in this "
                "batch."
            )
    else:
        index = torch.tensor(site.position).reshape(1, -1)
        if lengths is None:
            # Only the activation says how many positions there are.
            return SiteColumns(site, index, is_checked=False)
        index = index.to(lengths.device).expand(len(lengths), -1)
        index = columns_from_start(index, lengths, torch.zeros_like(index).bool(), f"Site {site}")

    # A position that occurs twice would be written twice, in no certain order.
    ordered = index.sort(dim=1).values
    like_its_neighbour = ordered[:, 1:] == ordered[:, :-1]
    twice = like_its_neighbour & (ordered[:, 1:] != IGNORED)
    if bool(twice.any()):
        row = int(twice.any(1).nonzero()[0])
        raise ValueError(
            f"Site {site}: a position occurs twice in example {row}: {index[row].tolist()}."
        )
    return SiteColumns(site, index, is_checked=lengths is not None, token_shape=token_shape)


# Paths of modules that see the encoder's tokens: those of the encoder, and the decoder's key and
# value projections of the encoder's states. An "encoder" below a "decoder" is not it.
_ENCODER = re.compile(
    r"(?!.*\bdecoder\b.*\bencoder\b).*\bencoder\b"
    r"|.*(encdec|encoder_?att|cross_?att).*\b(k|v|key|value)(_proj)?$",
    re.I,
)

# Paths of the decoder as a whole.
_DECODER = re.compile(r"(.*\.)?decoder(\.(bert|roberta|transformer))?", re.I)


def _sequence(site: Site, batch: Batch) -> Batch:
    """The batch of the tokens that the site's module sees.

    In an encoder-decoder, modules outside of the encoder see the decoder's tokens.
    """
    if not batch.encoder_decoder or site.module is None or _ENCODER.match(site.module):
        return batch
    embedded = batch.kwargs.get("decoder_inputs_embeds") is not None
    if site.side == "input" and _DECODER.fullmatch(site.module) and not embedded:
        # The decoder's own tokens enter as ids: the first floating input is the encoder's states.
        return batch
    if site.roles:
        raise ValueError(
            f"Site {site}: a role is a place of the prompt, which the encoder sees; this module "
            "sees the decoder's tokens. Count these: `position` is an int."
        )
    tokens = {"input_ids": batch.kwargs.get("decoder_input_ids")}
    return replace(batch, kwargs=tokens, lengths=batch.decoder_lengths)


def counts(site_columns: SiteColumns, batch: Batch) -> Int[Tensor, "batch"] | None:
    """Tensor[batch]: how many positions each example has there; None where only a run can tell."""
    if site_columns.index is None:
        return _sequence(site_columns.site, batch).lengths if site_columns.token_shape else None
    return (site_columns.index != IGNORED).sum(1).expand(batch.size)


def _every(batch: Batch) -> Tensor | None:
    """Tensor[batch, longest] of every real token's column; None where that is every position."""
    lengths = batch.lengths
    if lengths is None or bool((lengths == batch.tokens.shape[1]).all()):
        return None
    longest = int(lengths.max())
    steps = torch.arange(longest, device=lengths.device).expand(len(lengths), -1)
    return torch.where(steps < lengths.unsqueeze(1), steps, IGNORED)


def _role(site: Site, role: str, batch: Batch, active: Tensor | None) -> Int[Tensor, "batch n"]:
    """The role's columns, present ones first, so that equal counts mean equal places."""
    if active is not None and not bool(active.any()):
        # No example is edited, so nothing reads these columns.
        return torch.full((batch.size, 1), IGNORED, device=active.device)
    if role == "last" and role not in batch.positions and batch.lengths is not None:
        return (batch.lengths - 1).unsqueeze(1)
    if ANSWER_ROLE.fullmatch(role) and role not in batch.positions:
        n_answer = 0 if batch.answer is None else batch.answer.shape[1]
        raise ValueError(
            f"Site {site}: the batch has no token {role} that is an input; its answers have up to "
            f"{n_answer} tokens, of which the last is only read. Give base and source their "
            "`answer` (pairs from a file: the columns label and source_answer), and use "
            "`answer_logits` or `capture`, where it is teacher-forced."
        )
    if role not in batch.positions:
        roles = ", ".join(map(repr, batch.positions)) or "none"
        raise ValueError(
            f"Site {site}: the batch has no role {role!r}; its `positions` are: {roles}. (new and "
            "new[k], each alone, are what a base writes in `generate`. As a source give the "
            "`activations` that a collecting `generate` has returned.)"
        )

    index = batch.positions[role]
    present = index != IGNORED
    missing = ~present.any(1)
    if active is not None:
        missing &= active
    if bool(missing.any()):
        row = int(missing.nonzero()[0])
        raise ValueError(f"Site {site}: role {role!r} is absent in example {row} of the batch.")

    # A stable sort moves −100 behind the columns that are there; then the widest row decides.
    order = (~present).int().argsort(dim=1, stable=True)
    return index.gather(1, order)[:, : int(present.sum(1).max())]
