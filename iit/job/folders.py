"""The folder of a run or a sweep: made for it alone, or one to go on in."""

import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile, ZipFile

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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
                config.hydra.run.dir = str(exclusive(folder))

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Choose the folder of a sweep, and write what it is."""
        with _ending_the_command():
            sweep = _sweep_of(config)
            folder = Path(config.hydra.sweep.dir)
            if not _is_named(config, "sweep"):
                folder = exclusive(folder)
            before = read_record(folder / SWEEP)
            if before:
                _check_same(folder, before, sweep)
            elif folder.exists() and any(folder.iterdir()):
                raise ValueError(
                    f"hydra.sweep.dir={folder} is no folder of a sweep: it holds files, and no "
                    f"{SWEEP}. Give another."
                )
            config.hydra.sweep.dir = str(folder)
            # The config of each job is composed anew, from these overrides.
            text = str(folder).replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{text}'")
            if config.dry_run:
                return
            if not before:
                folder.mkdir(parents=True, exist_ok=True)
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
    given = map(str, config.hydra.overrides.hydra)
    return any(override.startswith(f"hydra.{kind}.dir=") for override in given)


def exclusive(folder: Path) -> Path:
    """Make a folder that no other process has, with a suffix where its name is taken."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate = folder
    for number in count(2):
        try:
            candidate.mkdir()
            break
        except FileExistsError:
            candidate = folder.with_name(f"{folder.name}_{number}")
    return candidate


def parsed(overrides: Any, loader: ConfigLoader | None = None) -> list[Override]:
    """Overrides as Hydra reads them."""
    return OverridesParser.create(loader).parse_overrides(list(map(str, overrides)))


def _sweep_of(config: Any) -> dict[str, Any]:
    """What `sweep.yaml` says of a sweep."""
    sweeper = config.hydra.sweeper
    params = sweeper.get("params") or {}
    overrides = [f"{key}={value}" for key, value in params.items()]
    overrides += map(str, config.hydra.overrides.task)
    # The last override of a key counts.
    by_key = {}
    for override in parsed(overrides, GlobalHydra.instance().config_loader()):
        by_key[override.key_or_group] = override
    swept = {key: override for key, override in by_key.items() if override.is_sweep_override()}
    n_jobs = None
    # Other sweepers choose the values of each job as they go.
    if "basic_sweeper" in sweeper._target_:
        n_jobs = prod(len(list(override.sweep_iterator())) for override in swept.values())
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    what = {"overrides": overrides, "swept": list(swept), "launcher": launcher, "jobs": n_jobs}
    return {**what, **provenance()}


def _check_same(folder: Path, before: dict[str, Any], sweep: dict[str, Any]) -> None:
    there, here = before["overrides"], sweep["overrides"]
    if there != here:
        only_there = [override for override in there if override not in here]
        only_here = [override for override in here if override not in there]
        differing = f"only there: {only_there}, only in this command: {only_here}"
        if not only_there + only_here:
            differing = "the order of the overrides"
        raise ValueError(
            f"{folder} holds another sweep ({differing}). Give the same command to go on, or "
            "another hydra.sweep.dir."
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
    text = json.dumps(OmegaConf.to_container(config, resolve=True), sort_keys=True)
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
    # Only a run of the command line knows that its folder holds no other config's run.
    if (folder / JOB).is_file():
        for name in ("last", "start"):
            path = folder / "checkpoints" / f"{name}.ckpt"
            if _is_whole(path):
                log.info("Going on from %s", path)
                return path
    return None


def _is_whole(path: Path) -> bool:
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, BadZipFile):
        return False
