"""What a command does around its jobs: a record of each, errors in words, the summary."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from iit.job.errors import error_text
from iit.job.folders import Folders, digest, is_done, parsed
from iit.job.provenance import cost
from iit.report import save_page, write_summary
from iit.result import read_metrics
from iit.result.record import JOB, SWEEP, Record, read_record, write_record
from iit.result.select import validation_iia

log = logging.getLogger(__name__)

# The user's HYDRA_FULL_ERROR, also for the processes of a launcher.
_FRAMES = "IIT_FULL_ERROR"


@contextmanager
def command() -> Iterator[None]:
    """End the process as a user needs it.

    A sweep is summarised and gets its page, whatever has happened. An error is printed without its
    frames (HYDRA_FULL_ERROR=1 shows them). The exit status is 0 only where all is done.
    """
    os.environ[_FRAMES] = os.environ.get("HYDRA_FULL_ERROR", "")
    # Hydra then hands its errors on, and prints no frames.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    Folders.sweep = status = None
    try:
        try:
            yield
        finally:
            if Folders.sweep is not None:
                complete = write_summary(Folders.sweep)
                save_page(Folders.sweep)
                if not complete:
                    print(f"The same command with hydra.sweep.dir={Folders.sweep} goes on.")
                    status = 1
    except KeyboardInterrupt:
        # As a shell has it of a command that Ctrl-C has ended.
        status = 130
    except Exception as error:
        if _shows_frames():
            raise
        status = error_text(error)
    if status is not None:
        sys.exit(status)


def _shows_frames() -> bool:
    return os.environ.get(_FRAMES) == "1"


def in_multirun() -> bool:
    """Whether this is one job of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def recorded(run: Any, cfg: DictConfig) -> float | None:
    """Run a job, and keep its record and its page in its folder; what is done is not run again.

    A job of a multirun that fails raises nothing, so that it ends no other. Its log has the
    traceback. One that was refused, as its folder holds something else, does raise: the sweep ends
    with its error, after the other jobs.

    Arguments:
        run: runs the job of a config, and returns its validation IIA.

    Returns:
        The validation IIA; None of a job without it, of a failed job, and of a dry run.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    log.info("Run folder: %s", folder)
    record: Record = {}
    try:
        if cfg.dry_run:
            return run(cfg)
        with FileLock(folder / "job.lock", timeout=0):
            config = digest(cfg)
            if is_done(folder, config):
                log.info("It is done already.")
                return validation_iia(read_metrics(folder).rows)
            record = {"status": "running", "overrides": _swept(), "config": config}
            write_record(folder / JOB, record)
            start = perf_counter()
            value = run(cfg)
            write_record(
                folder / JOB, record | {"status": "done", "cost": cost(perf_counter() - start)}
            )
            save_page(folder)
            return value
    except Exception as error:
        if isinstance(error, Timeout):
            error = ValueError(f"Another process runs the job in {folder}. Wait for it, or end it.")
        text = error_text(error)
        log_file = folder / f"{hydra.job.name}.log"
        # The disk may be full.
        with suppress(OSError):
            with log_file.open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            if record:
                record |= {"status": "failed", "error": text, "log": str(log_file)}
                write_record(folder / JOB, record)
        if not in_multirun():
            raise error
        log.error("Job %s failed: %s", hydra.job.num, text, exc_info=_shows_frames())
        # No record tells the summary of a job that was refused, or of a dry run.
        if not record:
            raise error
        return None
    except KeyboardInterrupt:
        if not in_multirun():
            print(f"The same command with hydra.run.dir={folder} goes on.")
        raise


def _swept() -> dict[str, Any]:
    """The values of this job's swept keys."""
    if not in_multirun():
        return {}
    hydra = HydraConfig.get()
    overrides = parsed(hydra.overrides.task)
    swept = read_record(Path(hydra.sweep.dir) / SWEEP)["swept"]
    return {key: overrides[key].value() for key in swept}
