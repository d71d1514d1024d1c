"""From characters of a text to tokens."""

import re
from collections.abc import Sequence

Offsets = Sequence[tuple[int, int]]
"""(start, stop) in characters of each token; (0, 0) for special tokens."""


def tokens_of_span(
    text: str, span: tuple[int, int], offsets: Offsets, *, role: str = "span"
) -> list[int]:
    """The tokens that cover a span's characters, spaces aside.

    A token may begin with the space before the span, as in byte-level BPE. Raises ValueError,
    quoting the text and marking the place, for a span that is empty, outside the text, or that cuts
    a token.
    """
    start, stop = span
    if not 0 <= start < stop <= len(text) or not text[start:stop].strip():
        raise ValueError(
            f"Role {role!r}: characters {start}:{stop} hold no text.\n{marked(text, start, stop)}"
        )
    inside = {i for i in range(start, stop) if not text[i].isspace()}
    tokens = [t for t, (a, b) in enumerate(offsets) if any(i in inside for i in range(a, b))]
    covered = {i for t in tokens for i in range(*offsets[t])}
    cut = [i for i in covered - inside if not text[i].isspace()]
    if cut or not inside <= covered:
        told = "".join(text[i] for i in sorted(cut))
        raise ValueError(
            f"Role {role!r}: {text[start:stop]!r} is not made of whole tokens (they also hold "
            f"{told!r}).\n{marked(text, start, stop)}"
        )
    return tokens


def last_mention(text: str, wanted: str, *, role: str = "span") -> tuple[int, int]:
    """(start, stop) of the last `wanted` that is whole words, else of the last one. Raises
    ValueError, quoting the text, when there is none.
    """
    # Neither end may lie inside of a word; a lookahead also finds mentions that overlap. Scripts
    # without spaces have no such ends.
    whole = re.finditer(rf"(?=(?!\B\w){re.escape(wanted)}(?<!\w\B))", text)
    spaced = re.search(r"[\u2e80-\ua4cf\u0e00-\u0eff\uf900-\ufaff]", wanted) is None
    last = text.rfind(wanted)
    start = max((mention.start() for mention in whole), default=last) if spaced else last
    if start < 0 or not wanted:
        raise ValueError(
            f"Role {role!r}: {wanted!r} does not occur in the "
            f"prompt.\n{marked(text, len(text), len(text))}"
        )
    return start, start + len(wanted)


def marked(text: str, start: int, stop: int) -> str:
    """The text with carets under a span, on lines of their own."""
    shown = text.replace("\n", "↵")
    return f"  {shown}\n  {' ' * start}{'^' * max(stop - start, 1)}"
