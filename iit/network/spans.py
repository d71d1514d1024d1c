"""From characters of a text to its tokens."""

import re
from collections.abc import Sequence

Offsets = Sequence[tuple[int, int]]
"""(start, stop) of each token in characters; (0, 0) for special tokens."""


def tokens_of_span(
    text: str, span: tuple[int, int], offsets: Offsets, *, role: str = "span"
) -> list[int]:
    """The tokens that cover a span's characters, apart from spaces.

    A token may begin with the space before the span, as in byte-level BPE.

    Raises ValueError, quoting the text and marking the place, for a span that is empty, outside the
    text, or cuts a token.
    """
    start, stop = span
    visible = {i for i, character in enumerate(text) if not character.isspace()}
    inside = visible.intersection(range(start, stop))
    if not 0 <= start < stop <= len(text) or not inside:
        raise ValueError(
            f"Role {role!r}: characters {start}:{stop} hold no text.\n{marked(text, start, stop)}"
        )
    tokens, covered = [], set()
    for token, offset in enumerate(offsets):
        characters = visible.intersection(range(*offset))
        if characters & inside:
            tokens.append(token)
            covered |= characters
    if covered != inside:
        # What the tokens hold beyond the span.
        outside = "".join(text[i] for i in sorted(covered - inside))
        raise ValueError(
            f"Role {role!r}: {text[start:stop]!r} is not made of whole tokens (they also hold "
            f"{outside!r}).\n{marked(text, start, stop)}"
        )
    return tokens


def last_mention(text: str, wanted: str, *, role: str = "span") -> tuple[int, int]:
    """(start, stop) of the last mention that is whole words, else of the last mention.

    Raises ValueError, quoting the text, when there is none.
    """
    # Neither end of a mention may lie inside a word. The lookahead also finds mentions that
    # overlap.
    whole = re.finditer(rf"(?=(?!\B\w){re.escape(wanted)}(?<!\w\B))", text)
    # Scripts without spaces between words have no such ends.
    spaced = re.search(r"[\u2e80-\ua4cf\u0e00-\u0eff\uf900-\ufaff]", wanted) is None
    start = text.rfind(wanted)
    if spaced:
        start = max((mention.start() for mention in whole), default=start)
    if start < 0 or not wanted:
        raise ValueError(
            f"Role {role!r}: {wanted!r} does not occur in the "
            f"prompt.\n{marked(text, len(text), len(text))}"
        )
    return start, start + len(wanted)


def marked(text: str, start: int, stop: int) -> str:
    """The text, and below it carets under a span."""
    shown = text.replace("\n", "↵")
    return f"  {shown}\n  {' ' * start}{'^' * max(stop - start, 1)}"
