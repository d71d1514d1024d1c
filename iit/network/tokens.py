"""The tokens of a text, and which special tokens stand around it."""

from typing import NamedTuple


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
    start = added.index(0) if 0 in added else min(1, len(ids))
    stop = len(ids) - added[::-1].index(0) if 0 in added else start
    first, last = (0, len(ids)) if wanted else (start, stop)
    if wanted is None:
        inner = ids[start:stop]
        # The tokenizer's special tokens are dropped where the text brings the same ones.
        if inner[:start] != ids[:start]:
            first = 0
        if not continues and inner[stop - len(ids) :] != ids[stop:]:
            last = len(ids)
    return Tokens(ids[first:last], offsets[first:last], start - first, stop - first)
