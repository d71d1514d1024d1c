"""Folders that a page is made of: committed results, and pairs as a run writes them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from iit.report import write_page
from iit.result.record import JOB, SWEEP, read_record, write_record

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "run": "das_ioi",
    "sweep": "das_ioi",
    "atlas": "das_ioi_atlas",
    "maps": "patching_ioi",
    "steering": "steering",
}
"""{kind of page: the experiment whose committed result it shows; a sweep's jobs all have it}."""


def prompt(first: str, second: str) -> tuple[str, dict]:
    """A prompt that says the second name twice, and where its roles are."""
    text = f"When {first} and {second} went to <the store>, {second} gave a drink to"
    start = text.rindex(second) - 1
    return text, {"s2": [start, start + len(second) + 1], "last": None}


def outcomes(n: int = 24) -> list[dict]:
    """Pairs of both splits, right and wrong; a third of the test pairs is wrong."""
    rows = []
    for number in range(n):
        changing = number % 2 == 0
        base, base_roles = prompt("John", "Mary")
        source, source_roles = prompt("Anna", "Paul") if changing else prompt("Paul", "Anna")
        right = number % 3 > 0
        top = [{"text": text, "logit": 9.5 - k} for k, text in enumerate((" John", " Mary", " <"))]
        row = {
            "split": "validation" if number % 4 == 3 else "test",
            "pair": number // 4 if number % 4 == 3 else number - number // 4,
            "variables": ["subject_position"],
            "kind": "subject_position+io_name" if changing else "io_name",
            "changing": changing,
            "base": base,
            "base_roles": base_roles,
            "sources": [
                {"variable": "subject_position", "text": source, "roles": source_roles},
            ],
            "label": " Mary" if changing else " John",
            "base_answer": " John",
            "before": " John",
            "after": " Mary" if changing == right else " John",
            "right": right,
            "before_top": top,
            "after_top": top[::-1],
        }
        rows.append(row)
    return rows


def folder_of(kind: str, folder: Path) -> Path:
    """Fill a folder with what a run of that kind leaves, as far as the repository holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "sweep":
        return sweep_in(folder)
    result = json.loads((ROOT / "experiments" / KINDS[kind] / "result.json").read_text())
    if kind in ("run", "atlas"):
        result["facts"]["meanings"] = {"subject_position": "which of the two names is repeated"}
        result["facts"]["network"] |= {"device": "cpu", "dtype": "fp32"}
        change = {"key": "site.layer", "default": None, "value": 17}
        result["facts"]["config_changes"] = [change]
        table = pa.Table.from_pylist(outcomes(), metadata={"iit.schema": "iit.outcomes/1"})
        pyarrow.parquet.write_table(table, folder / "outcomes.parquet")
        nodes = [
            {"name": "s_name", "kind": "input", "depth": 0, "place": None},
            {"name": "subject_position", "kind": "computed", "depth": 1, "place": "block 17 @ s2"},
            {"name": "answer", "kind": "output", "depth": 2, "place": None},
        ]
        edges = [["s_name", "subject_position"], ["subject_position", "answer"]]
        model = {"name": "ioi", "nodes": nodes, "edges": edges}
        (folder / "causal_model.json").write_text(json.dumps(model))
    cost = {"seconds": 83.0, "peak_memory_bytes": 2_000_000_000, "gpu_peak_memory_bytes": {}}
    write_record(folder / JOB, {"status": "done", "overrides": {}, "cost": cost})
    (folder / "config.yaml").write_text("score: {kind: argmax}\n")
    (folder / "metrics.json").write_text(json.dumps(result))
    return folder


def sweep_in(folder: Path) -> Path:
    """A sweep over three seeds: the first job is chosen, and the last one has failed."""
    record = {"overrides": ["seed=0,1,2"], "swept": ["seed"], "jobs": 3, "launcher": "basic"}
    write_record(folder / SWEEP, record)
    for seed in range(3):
        job = folder_of("run", folder / str(seed))
        record = read_record(job / JOB) | {"overrides": {"seed": seed}}
        path = job / "metrics.json"
        metrics = json.loads(path.read_text())
        for row in metrics["rows"]:
            row["seed"] = seed
            if seed == 1 and row["split"] == "validation":
                row["value"] *= 0.9
        path.write_text(json.dumps(metrics))
        if seed == 2:
            path.unlink()
            error = f"A <word> and a path without spaces: {'/long/path' * 12}"
            record |= {"status": "failed", "error": error, "log": "2/run.log"}
        write_record(job / JOB, record)
    return folder


def page_of(kind: str, folder: Path) -> Path:
    """The page of such a folder."""
    return write_page(folder_of(kind, folder))


if __name__ == "__main__":
    # `python -m tests.report.pages FOLDER` writes a page of each kind to look at.
    import sys

    for kind in KINDS:
        print(page_of(kind, Path(sys.argv[1]) / kind))
