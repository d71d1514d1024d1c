"""The tokens of a text, and which special tokens stand around it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

MOST_TOKENS = 1_000_000
"""How many tokens are kept of texts that were tokenized."""


@final
class TokenizedTexts:
    """What a tokenizer made of texts: equal texts are tokenized once."""

    def __init__(self) -> None:
        self._begin(None, None)

    def of(self, tokenizer: Any, texts: Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """What the tokenizer makes of each text, {column: its list}.

        Arguments:
            options: as the tokenizer takes them.
        """
        state = _state(tokenizer)
        is_same = tokenizer is self._tokenizer and state == self._state
        if state is None or not is_same or self._n_tokens > MOST_TOKENS:
            self._begin(tokenizer, state)
        rows = self._rows.setdefault(tuple(options.items()), {})
        # A conversation is kept as the text that it is.
        texts = list(map(str, texts))
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        # Some tokenizers do not take an empty list.
        encoding = tokenizer(new, **options) if new else {}
        for number, text in enumerate(new):
            rows[text] = {name: column[number] for name, column in encoding.items()}
            self._n_tokens += len(rows[text]["input_ids"])
        return [rows[text] for text in texts]

    def _begin(self, tokenizer: Any, state: Any) -> None:
        self._tokenizer, self._state, self._n_tokens = tokenizer, state, 0
        # {options: {text: its row}}
        self._rows: dict[Any, dict[str, Any]] = {}


def _state(tokenizer: Any) -> Any:
    """What else decides how a text is read; None where nobody can tell."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    try:
        written = [part and part.__getstate__() for part in parts]
    # A part that a user wrote in Python has no state to write down.
    except Exception:
        return None
    if getattr(backend.model, "dropout", None):
        # Each reading is another one.
        return None
    # The written form of an added token has its flags, too.
    added = repr(tokenizer.added_tokens_decoder)
    return written, added, len(tokenizer), tokenizer.split_special_tokens


class Tokens(NamedTuple):
    """The tokens of one text.

    Arguments:
        ids: of all tokens, special ones included.
        offsets: (start, stop) of each token in characters.
        start, stop: where the text's own tokens are, without the special ones that the tokenizer
            adds.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    start: int
    stop: int

    @property
    def text_ids(self) -> list[int]:
        """The text's own tokens."""
        return self.ids[self.start : self.stop]


def with_special_tokens(
    ids: list[int],
    offsets: list[tuple[int, int]],
    added: list[int],
    continues: bool,
    wanted: bool | None = None,
) -> Tokens:
    """The tokens of a text, with as many special ones as belong there.

    A text that begins with the special tokens itself, as a rendered chat does, gets no second ones.
    A text that goes on gets no end.

    Arguments:
        added: 1 for each token that the tokenizer put around the text, else 0.
        continues: whether the network goes on where the text ends.
        wanted: True keeps all special tokens, False none; None decides by the text.
    """
    # Where all tokens are special, the text is empty: its first one counts as standing in front.
    start = stop = min(1, len(ids))
    if 0 in added:
        start = added.index(0)
        stop = len(ids) - added[::-1].index(0)
    first, last = (0, len(ids)) if wanted else (start, stop)
    if wanted is None:
        inner = ids[start:stop]
        # The tokenizer's special tokens are dropped where the text brings the same ones.
        if inner[:start] != ids[:start]:
            first = 0
        if not continues and inner[stop - len(ids) :] != ids[stop:]:
            last = len(ids)
    return Tokens(ids[first:last], offsets[first:last], start - first, stop - first)
