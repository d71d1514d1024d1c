"""Reads an offline W&B run, as `wandb sync` would send it."""

import json
import struct
from types import SimpleNamespace

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, _FIRST, _MIDDLE, LAST = 1, 2, 3, 4


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


def wandb_run(folder):
    """What the one W&B run in a run's folder holds."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = SimpleNamespace(
        config={}, history={}, summary={}, metrics={}, artifacts=[], exit_code=None, path=path
    )
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run = record.run
            for item in record.run.config.update:
                run.config[item.key] = json.loads(item.value_json)
        if kind == "history":
            for item in record.history.item:
                run.history[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if kind == "summary":
            for item in record.summary.update:
                run.summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        if kind == "artifact":
            run.artifacts.append(record.artifact)
        if kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            run.artifacts.append(record.request.log_artifact.artifact)
        if kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
