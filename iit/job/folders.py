"""The folder of a run or a sweep: made for it alone, or one to go on in."""

import copy
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile, ZipFile

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from iit.job.errors import error_text
from iit.job.provenance import provenance
from iit.result.metrics import FILE
from iit.result.record import JOB, SWEEP, read_record, write_record

log = logging.getLogger(__name__)


class Folders(Callback):
    """Chooses the folder of a run or a sweep before Hydra writes to it.

    A new folder is made exclusively, with a suffix where its name is taken. A folder that the
    command names (`hydra.run.dir=`, `hydra.sweep.dir=`) is gone on in. One that holds another run
    or another sweep ends the command.
    """

    # Hydra makes the callback, and gives nobody a handle to it.
    sweep: ClassVar[Path | None] = None
    """The folder of the sweep that this process has started."""

    # Any, as a DictConfig inherits from a deprecated typing generic, of which beartype warns.
    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        """Choose the folder of a single run."""
        with _ending_the_command():
            folder = Path(config.hydra.run.dir)
            if _is_named(config, "run"):
                is_done(folder, digest(config))
            else:
                config.hydra.run.dir = exclusive(folder)

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Choose the folder of a sweep, and write what it is."""
        with _ending_the_command():
            sweep = _sweep_of(config)
            folder = Path(config.hydra.sweep.dir)
            if not _is_named(config, "sweep"):
                folder = exclusive(folder)
            folder.mkdir(parents=True, exist_ok=True)
            before = read_record(folder / SWEEP)
            if before:
                _check_same(folder, before, sweep)
            # A dry run leaves Hydra's file alone.
            elif any(folder.glob("[!.]*")) and not (folder / "multirun.yaml").is_file():
                raise ValueError(
                    f"hydra.sweep.dir={folder} is no folder of a sweep: it holds files, and no "
                    f"{SWEEP}. Give another."
                )
            config.hydra.sweep.dir = folder
            # The config of each job is composed anew, from these overrides.
            quoted = str(folder).replace("'", r"\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
            if config.dry_run:
                return
            if not before:
                write_record(folder / SWEEP, sweep)
            Folders.sweep = folder


@contextmanager
def _ending_the_command() -> Iterator[None]:
    """Hydra makes a warning of an error in a callback; this one has to end the command."""
    try:
        yield
    except Exception as error:
        raise SystemExit(error_text(error)) from error


def _is_named(config: Any, kind: str) -> bool:
    """Whether the command names the folder."""
    return f"hydra.{kind}.dir=" in "\n".join(config.hydra.overrides.hydra)


def exclusive(folder: Path) -> Path:
    """Make a folder that no other process has, with a suffix where its name is taken."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate = folder
    for number in count(2):
        with suppress(FileExistsError):
            candidate.mkdir()
            break
        candidate = folder.with_name(f"{folder.name}_{number}")
    return candidate


def parsed(overrides: Any) -> dict[str, Any]:
    """Overrides as Hydra reads them, {key: override}. The last one of a key counts."""
    # Its loader knows what a group has, for glob(*).
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return {o.key_or_group: o for o in parser.parse_overrides(overrides)}


def _sweep_of(config: Any) -> dict[str, Any]:
    """What `sweep.yaml` says of a sweep."""
    sweeper = config.hydra.sweeper
    overrides = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = [*overrides, *config.hydra.overrides.task]
    swept, n_jobs = [], 1
    for key, override in parsed(overrides).items():
        if override.is_sweep_override():
            swept.append(key)
            # Other sweepers choose the values of each job as they go.
            if "BasicSweeper" in sweeper._target_:
                n_jobs *= len(list(override.sweep_iterator()))
    return provenance() | {
        "overrides": overrides,
        "swept": swept,
        "launcher": config.hydra.runtime.choices["hydra/launcher"],
        "jobs": n_jobs,
    }


def _check_same(folder: Path, before: dict[str, Any], sweep: dict[str, Any]) -> None:
    overrides = before["overrides"]
    if overrides != sweep["overrides"]:
        differing = set(overrides) ^ set(sweep["overrides"])
        raise ValueError(
            f"{folder} holds another sweep; they differ in {sorted(differing) or 'their order'}. "
            "Give the same overrides to go on, or another hydra.sweep.dir."
        )
    if before["git"] != sweep["git"]:
        log.warning("The sweep was started at %s, and goes on at %s.", before["git"], sweep["git"])


def digest(config: DictConfig) -> str:
    """A digest of what a config computes: of all but Hydra's own keys, paths and loggers."""
    config = copy.deepcopy(config)
    with open_dict(config):
        config.pop("hydra", None)
        config.logger = None
        # Other keys may be made from these.
        config.paths = dict.fromkeys(config.paths, "")
    text = OmegaConf.to_yaml(config, resolve=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(folder: Path, config: str) -> bool:
    """Whether a folder holds the result of the config with this digest.

    Raises:
        ValueError: where it holds a run of another config, or a damaged record.
    """
    record = read_record(folder / JOB)
    has_result = (folder / FILE).is_file()
    if (record or has_result) and record.get("config") != config:
        raise ValueError(
            f"{folder} holds a run of another configuration (see config.yaml there). Nothing in "
            "it is overwritten: give the same configuration to go on, or another folder."
        )
    return has_result


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that an interrupted run of this folder left, to go on from."""
    path = folder / "checkpoints" / "last.ckpt"
    # Only a run of the command line knows that its folder holds no other config's run.
    if (folder / JOB).is_file():
        # One that was half written is not believed.
        with suppress(OSError, BadZipFile), ZipFile(path) as file:
            if file.testzip() is None:
                return path
    return None
