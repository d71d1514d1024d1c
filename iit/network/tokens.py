"""Which special tokens stand around a text, and which tokens continue a prompt as its answer."""

from typing import NamedTuple


class Tokens(NamedTuple):
    """The tokens of one text.

    ids, offsets: of all tokens, special ones included; an offset is (start, stop) in characters.
    start, stop: the text's own tokens, without the special ones that the tokenizer adds.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    start: int
    stop: int

    @property
    def own(self) -> list[int]:
        """The text's own tokens."""
        return self.ids[self.start : self.stop]


def with_special_tokens(
    ids: list[int],
    offsets: list[tuple[int, int]],
    added: list[int],
    *,
    continues: bool,
    wanted: bool | None = None,
) -> Tokens:
    """The tokens of a text, with as many special ones as belong there.

    A text that begins with the special tokens itself, as a rendered chat does, gets no second ones.
    Nothing ends a text that goes on.

    Arguments:
        added: 1 for each token that the tokenizer put around the text, else 0.
        continues: whether the network goes on where the text ends.
        wanted: True keeps all special tokens, False none, None decides.
    """
    start = added.index(0) if 0 in added else min(1, len(ids))
    stop = len(ids) - added[::-1].index(0) if 0 in added else start
    before, own, after = ids[:start], ids[start:stop], ids[stop:]
    keeps_before = own[:start] != before if wanted is None else wanted
    keeps_after = not continues and own[-len(after) :] != after if wanted is None else wanted
    first = 0 if keeps_before else start
    last = len(ids) if keeps_after else stop
    return Tokens(ids[first:last], offsets[first:last], start - first, stop - first)


class Gap(NamedTuple):
    """Where an answer goes in a prompt.

    before, behind: the texts around it. first, last: their tokens.
    """

    before: str
    behind: str
    first: list[int]
    last: list[int]

    @classmethod
    def at_mask(cls, text: str, own: list[int], mask: str, mask_id: int) -> "Gap":
        """The place of all masks of a text. Raises ValueError for a text without one."""
        if mask not in text:
            raise ValueError(f"A masked language model is read at its mask; there is no {mask!r} in {text!r}.")
        start, stop = text.index(mask), text.rindex(mask) + len(mask)
        first, last = own.index(mask_id), len(own) - own[::-1].index(mask_id)
        return cls(text[:start], text[stop:], own[:first], own[last:])

    def between(self, whole: list[int]) -> list[int] | None:
        """The tokens of the answer, among those of the whole text; None where the others are not the prompt's."""
        start, stop = len(self.first), len(whole) - len(self.last)
        if stop < start or whole[:start] != self.first or whole[stop:] != self.last:
            return None
        return whole[start:stop]

    def lacks_space(self, answer: str) -> bool:
        """Whether the last word of a prompt with spaces and the first of the answer are run together."""
        end = self.before[-1:]
        return " " in self.before and (end.isalnum() or end in ",.:;?!") and answer[:1].isalpha()
