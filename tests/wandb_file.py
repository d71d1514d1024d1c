"""Reads an offline W&B run, as `wandb sync` would send it."""

import json
import struct
import time
from types import SimpleNamespace

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, LAST = 1, 4


def records(path):
    """The records of a `.wandb` file: LevelDB's log format behind a header of seven bytes."""
    content, at, payload = path.read_bytes(), FILE_HEADER, b""
    while at + RECORD_HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + RECORD_HEADER])
        at += RECORD_HEADER
        payload += content[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield Record.FromString(payload)
            payload = b""


def whole(path):
    """All records of a run that has ended. W&B's service writes the last ones on its own time."""
    for _ in range(100):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def wandb_run(folder):
    """What the only W&B run in a run's folder holds."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = SimpleNamespace(config={}, history={}, summary={}, artifacts={}, files=path.parent)
    for record in whole(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run = record.run
            for item in record.run.config.update:
                run.config[item.key] = json.loads(item.value_json)
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            for item in items:
                name = "/".join(item.nested_key) if item.nested_key else item.key
                getattr(run, kind)[name] = json.loads(item.value_json)
        elif kind == "artifact":
            run.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
