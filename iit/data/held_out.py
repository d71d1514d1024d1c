"""The test split, out of reach until a choice is frozen."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from iit.data.pairs import Pairs
from iit.data.table import from_table
from iit.result import write_text

FILE = "choice.json"


@final
@dataclass(frozen=True)
class Choice:
    """What validation chose, as it stands in a run's folder; only `freeze` makes one.

    Arguments:
        path: of the file.
        text: what it held when it was written.
    """

    path: Path
    text: str


@final
class HeldOut:
    """All pairs with the test split, which open for a frozen choice only."""

    def __init__(self, pairs: Pairs):
        self._pairs = pairs

    def opened(self, choice: Choice) -> Pairs:
        """All pairs, the test split among them.

        Raises ValueError where the choice is not on disk as it was frozen.
        """
        # A choice that was not written to disk, or was changed since, opens nothing.
        if (
            not isinstance(choice, Choice)
            or not choice.path.is_file()
            or choice.path.read_text(encoding="utf-8") != choice.text
        ):
            raise ValueError(
                "The test split opens for a choice that stands in the run's folder: call "
                f"freeze(folder, what was chosen) first, and leave {FILE} as it is."
            )
        return self._pairs


def hold_out(pairs: Pairs) -> tuple[Pairs, HeldOut]:
    """Take the test split away until the choice of site, rank and epoch is frozen.

    Returns the pairs without it, and what opens it. The pairs also lose what could draw the test
    split again.
    """
    rows = [i for i, split in enumerate(pairs.dataset["split"]) if split != "test"]
    # A copy: a selection of a dataset would still hold all rows.
    rest: Any = pairs.dataset.select(rows).with_format("arrow")[:]
    return replace(pairs, dataset=from_table(rest), sampled=None, prompts=None), HeldOut(pairs)


def freeze(folder: str | Path, choice: Mapping[str, Any]) -> Choice:
    """Write the choice, with the validation figures behind it, to `folder / "choice.json"`.

    Raises ValueError for a value that JSON does not have.
    """
    path, text = (
        Path(folder) / FILE,
        json.dumps(choice, indent=2, sort_keys=True, allow_nan=False) + "\n",
    )
    write_text(path, text)
    return Choice(path, text)
