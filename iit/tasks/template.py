"""Templates: sentences with slots for words."""

from collections.abc import Mapping
from string import Formatter

from iit.causal import Prompt


def fill(
    template: str,
    words: Mapping[str, str],
    roles: Mapping[str, str] | None = None,
) -> Prompt:
    """Fill the `{slot}`s of a template and mark where each word went.

    words: slot → word.
    roles: slot → role, where the role has another name than the slot. A slot that occurs twice has
        the span of its last occurrence.
    """
    text = ""
    spans = {}
    renamed = roles or {}
    for before, slot, _, _ in Formatter().parse(template):
        text += before
        if slot is not None:
            start = len(text)
            text += words[slot]
            spans[renamed.get(slot, slot)] = (start, len(text))
    return Prompt(text, spans)
