"""`outcomes.parquet` in a run's folder: what the network says to each pair."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iit.evaluation import Scoring
from iit.job.setup import save_causal_model


def save_outcomes(folder: Path, validation: Scoring, test: Scoring) -> None:
    """Write `outcomes.parquet`, a row for each pair, and the causal model of the pairs.

    docs/outcomes.md has the columns.

    Arguments:
        folder: the run's folder.
        validation, test: an alignment on each split, scored.
    """
    table = pa.Table.from_pylist(
        [*_lines(validation), *_lines(test)], metadata={"iit.schema": "iit.outcomes/1"}
    )
    # It is renamed when it is complete, so nobody reads half a file.
    temporary = folder / ".outcomes.partial"
    pq.write_table(table, temporary)
    temporary.replace(folder / "outcomes.parquet")
    save_causal_model(folder, test.pairs, test.alignment.site_texts())


def _lines(scoring: Scoring) -> Any:
    """The rows of one split."""
    network: Any = scoring.network
    decoded = str if network.classifies else network.tokenizer.decode
    for row, pair in enumerate(scoring.table.to_list()):
        line = {
            "pair": row,
            "variables": scoring.encoded.interchanged[row],
            "changing": bool(scoring.encoded.changing[row]),
            # None where the score says nothing of the pair.
            "right": {0: False, 1: True}.get(scoring.own_outcomes.scored[row]),
        }
        for name in ("split", "kind", "base", "base_roles", "label", "base_answer"):
            line[name] = _shown(pair.get(name))
        # With several variables each has columns of its own.
        line["sources"] = [
            {
                "variable": variable,
                "text": _shown(pair.get(f"source[{variable}]", pair.get("source"))),
                "roles": pair.get(f"source_roles[{variable}]", pair.get("source_roles")),
            }
            for variable in line["variables"]
        ]
        for name, outcome in (("before", scoring.unedited), ("after", scoring.own_outcomes)):
            best = [
                {"text": decoded(token), "logit": logit}
                for logit, token in zip(*outcome.best[row], strict=True)
            ]
            # Of an answer of several tokens only the first is known, and whether it is the label.
            answer = line["label"] if outcome.right[None][row] else best[0]["text"]
            line |= {name: outcome.texts[row] or answer, f"{name}_top": best}
        yield line


def _shown(value: Any) -> Any:
    """Texts and roles as they are; classes, several right answers and tensors as short texts."""
    return value if isinstance(value, str | dict | None) else str(value)[:120]
