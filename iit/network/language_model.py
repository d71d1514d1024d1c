"""A frozen language model with its tokenizer."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, SupportsIndex, final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iit.network.answering import IGNORED, head_at, teacher_forced
from iit.network.batches import TextBatches
from iit.network.layout import device_of
from iit.network.spans import last_occurrence, tokens_of_span
from iit.result import correct

Place = str | SupportsIndex | Sequence[SupportsIndex] | slice | None
"""Where a role is in one text: its words, token indices, a slice of characters, or nowhere."""


@final
class LanguageModel:
    """A transformers model under study, frozen and in eval mode, and its tokenizer.

    A tokenizer without a padding token pads with its end-of-text token; the attention mask tells padding apart.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None, revision: str | None = None
    ):
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not tell which characters a token covers; use a fast tokenizer.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self.revision = revision
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.model.dtype

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return f"LanguageModel({self.name}, {type(self.model).__name__}, {n / 1e6:.0f}M parameters, {self.dtype}, {self.device})"

    def encode(
        self,
        texts: str | Sequence[str],
        positions: Mapping[str, Place | Sequence[Place] | Tensor] | None = None,
        answers: str | Sequence[str | Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        """Tokenize prompts, right-padded, and resolve their roles and answers.

        positions: role → one place a text: words (their last occurrence), a token index or a list of them (over the prompt's
            real tokens; negative counts from the end), a slice of characters, or None where the text lacks the role. For a
            single text the place may stand alone. `last` is always the last token.
        answers: one a text, as it continues the prompt (" John"); or for each text several of one token, each of them right.

        Returns `input_ids` and `attention_mask`, LongTensor[batch, seq]; `positions`, {role: LongTensor[batch, n]}, −100 = absent,
        always with `last`, and with `ROLE_last`, the last token of each role; with answers `answer`, LongTensor[batch, n_answer] (LongTensor[batch, 1, n_right] where several
        are right), −100 padded.

        Raises ValueError for empty texts and answers, answers outside the vocabulary, numbers that do not fit, and places that a text does not have, quoting
        it and marking the place.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("There are no texts to encode.")
        if "last" in (positions or {}):
            raise ValueError("The role 'last' is always the prompt's last token; give another name to another place.")
        encoded = self._read(texts, padding=False, return_offsets_mapping=True)
        ids: list[list[int]] = encoded["input_ids"]
        for number, row in enumerate(ids):
            if not row:
                raise ValueError(f"Text {number} is empty: {texts[number]!r}.")
        pad: Any = self.tokenizer.pad_token_id
        batch: dict[str, Any] = {
            "input_ids": _padded(ids, pad or 0),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
            "positions": {},
        }
        for role, places in (positions or {}).items():
            listed = _one_a_text(places, len(texts), role)
            tokens = [_tokens(t, p, o, role) for t, p, o in zip(texts, listed, encoded["offset_mapping"], strict=True)]
            batch["positions"][role] = _padded(tokens, IGNORED)
            if f"{role}_last" not in (positions or {}):
                batch["positions"][f"{role}_last"] = _padded([row[-1:] for row in tokens], IGNORED)
        batch["positions"]["last"] = torch.tensor([[len(row) - 1] for row in ids])
        if answers is not None:
            batch["answer"] = self._answers(answers, len(texts))
        return batch

    def batches(
        self, texts: Sequence[str], positions: Mapping[str, Sequence[Any]] | None = None, *, size: int = 64
    ) -> TextBatches:
        """The texts as `encode` gives them, `size` at a time, tokenized when asked for (what `iit.capture_dataset` reads).

        positions: role → one place a text, as in `encode`. Raises ValueError for a size below 1 and places that are not as many
        as the texts; while it is read, as `encode` does.
        """
        return TextBatches(self.encode, texts, positions or {}, size)

    def _answers(self, answers: str | Sequence[str | Sequence[str]], n: int) -> Tensor:
        answers = [answers] if isinstance(answers, str) else answers
        if len(answers) != n:
            raise ValueError(f"{n} texts need as many answers; got {len(answers)}.")
        other = next((answer for answer in answers if not isinstance(answer, str | list | tuple)), None)
        if other is not None:
            raise ValueError(f"A text is answered by a text, or by several that are right; got {other!r}.")
        if any(not isinstance(answer, str) for answer in answers):
            each = [[self._tokens_of(a) for a in ([answer] if isinstance(answer, str) else answer)] for answer in answers]
            longer = [answer for answer, found in zip(answers, each, strict=True) if any(len(row) != 1 for row in found)]
            if longer:
                raise ValueError(f"Of several right answers each is one token; {longer[0]!r} are not.")
            return _padded([[row[0] for row in found] for found in each], IGNORED).unsqueeze(1)
        tokens = [self._tokens_of(answer) for answer in answers]
        empty = [answer for answer, row in zip(answers, tokens, strict=True) if not row]
        if empty:
            raise ValueError(f"The answer {empty[0]!r} has no token.")
        return _padded(tokens, IGNORED)

    def _tokens_of(self, answer: Any) -> list[int]:
        tokens = self._read(answer, add_special_tokens=False)["input_ids"]
        unknown: Any = self.tokenizer.unk_token_id
        if unknown in tokens and str(self.tokenizer.unk_token) not in answer:
            raise ValueError(
                f"The answer {answer!r} is outside the vocabulary of {self.name}: its tokens are {tokens}, {unknown} the unknown one."
            )
        return tokens

    def _read(self, texts: Any, **options: Any) -> Any:
        try:
            return self.tokenizer(texts, **options)
        except Exception as error:  # a tokenizer of whole words has no narrower one for a word that it does not know
            known = set(self.tokenizer.get_vocab())
            words = {word for text in ([texts] if isinstance(texts, str) else texts) for word in text.split()}
            raise ValueError(f"{self.name} cannot read {sorted(words - known)[:5]}: {error}.") from error

    def answers_right(self, texts: Sequence[str], answers: Sequence[str | Sequence[str]], *, batch_size: int = 64) -> np.ndarray:
        """bool[n]: is each answer, token by token, the argmax over the whole vocabulary? (Or one of several right ones?)"""
        encoded = self.encode(texts, answers=answers)
        right = torch.zeros(len(texts), dtype=torch.bool)
        by_length = encoded["attention_mask"].sum(1).argsort(stable=True)
        for rows in by_length.split(batch_size):
            longest = int(encoded["attention_mask"][rows].sum(1).max())
            ids, mask, answer = (encoded[key][rows].to(self.device) for key in ("input_ids", "attention_mask", "answer"))
            first = answer[..., 0] if answer.ndim == 3 else answer
            ids, mask, read = teacher_forced(ids[:, :longest], mask[:, :longest], first)
            with torch.no_grad(), head_at(self.model, read) as at_answer:
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            if not at_answer:
                logits = logits.gather(1, read.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
            right[rows] = correct(logits, answer).cpu()
        return right.numpy()


def _one_a_text(places: Any, n: int, role: str) -> list[Place]:
    if isinstance(places, Tensor):
        places = places.tolist()
    listed = places if isinstance(places, Sequence) and not isinstance(places, str) else [places]
    if len(listed) != n:
        got = repr(places) if len(listed) == 1 else len(listed)
        raise ValueError(f"Role {role!r} needs one place for each of the {n} texts; got {got}.")
    return list(listed)


def _tokens(text: str, place: Place, offsets: Sequence[tuple[int, int]], role: str) -> list[int]:
    if place is None:
        return []
    if isinstance(place, str):
        return tokens_of_span(text, last_occurrence(text, place, role=role), offsets, role=role)
    if isinstance(place, slice):
        if place.step is not None:
            raise ValueError(f"Role {role!r}: a slice of characters has no step; got {place}.")
        start, stop = place.start or 0, len(text) if place.stop is None else place.stop
        return tokens_of_span(text, (start, stop), offsets, role=role)
    indices = [index(i) for i in (place if isinstance(place, Sequence) else [place])]
    wrong = [i for i in indices if not -len(offsets) <= i < len(offsets)]
    if wrong:
        raise ValueError(f"Role {role!r}: token {wrong[0]} is outside the prompt's {len(offsets)} tokens.\n  {text}")
    return [i % len(offsets) for i in indices]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
