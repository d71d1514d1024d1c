"""Many texts as token batches, one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, eq=False)
class TextBatches:
    """The batches of many texts, in their order.

    Each batch is tokenized when it is asked for, and padded to its own longest text.

    Arguments:
        encode: `LanguageModel.encode`.
        texts: the texts.
        positions: role → one place for each text.
        size: texts a batch.

    Raises:
        ValueError: for a size below 1, and for roles whose places are not as many as the texts.
    """

    encode: Callable[..., dict[str, Any]]
    texts: Sequence[str]
    positions: Mapping[str, Sequence[Any]]
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"A batch holds at least one text; got size={self.size}.")
        for role, places in self.positions.items():
            if len(places) != len(self.texts):
                raise ValueError(
                    f"Role {role!r} needs one place for each of the {len(self.texts)} texts; got "
                    f"{len(places)}."
                )

    def __len__(self) -> int:
        # Rounded up: the last batch may be smaller.
        return -(-len(self.texts) // self.size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.texts), self.size):
            rows = slice(start, start + self.size)
            yield self.encode(
                list(self.texts[rows]),
                positions={role: p[rows] for role, p in self.positions.items()},
            )
