"""A run: compose the config, seed, do the job, write the rows with their provenance."""

import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from iit.job.declared import check_chosen, check_numbers, check_token
from iit.job.dry_run import dry_run
from iit.report import print_results
from iit.result import ROW_FIELDS, Row, rows_of, scores_of, select, write_metrics

log = logging.getLogger(__name__)

# The packages whose versions are recorded: figures may depend on them.
PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "hydra-core",
    "datasets",
    "safetensors",
    "wandb",
    "numpy",
)


def run(cfg: DictConfig) -> float | None:
    """Run the job that the config describes, and write its rows.

    At the start it writes `config.yaml` to the run's folder, at the very end `metrics.json`. A
    folder without `metrics.json` holds no result. Every logger gets rows, too (see `_log`).

    With `cfg.dry_run` the job is only checked, without weights, and nothing is written.

    Arguments:
        cfg: a composed config. `cfg.job` names the job's function, `cfg.paths.run` the folder.

    Returns:
        The validation IIA on changing pairs (see `validation_iia`); None of a dry run.

    Raises:
        OSError: when the folder cannot be written.
        SystemExit: where a dry run finds something wrong; in a multirun it is a ValueError.
        ValueError: where the config lacks what an experiment sets, has another value in place of a
            number, or holds a token.
    """
    check_token(OmegaConf.select(cfg, "network.token"))
    check_chosen(cfg)
    check_numbers(cfg)
    if cfg.dry_run:
        if wrong := dry_run(cfg).wrong:
            # The jobs of a multirun share a process, so one of them may not end it.
            error: Any = ValueError if _in_multirun() else SystemExit
            raise error("\n".join(wrong))
        return None
    # Lightning's own business.
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    if _in_multirun():
        # The bars of several jobs would garble each other: each job writes lines.
        os.environ.setdefault("TTY_INTERACTIVE", "0")
    folder = Path(cfg.paths.run)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    L.seed_everything(cfg.seed, verbose=False)
    loggers = list(instantiate(cfg.logger).values()) if cfg.logger else []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # Lightning always passes this setting, and wandb warns of it.
            logger._wandb_init.pop("anonymous", None)
    try:
        # `_target_` in the config names the job's function.
        rows, facts = instantiate(cfg.job)(cfg, folder, loggers)
        _log(loggers, folder, rows)
        # At the very end: only a finished run has this file.
        write_metrics(folder, rows, **facts, **provenance())
    finally:
        # Jobs of a multirun may share a process, and each has a W&B run of its own.
        wandb.finish()
    if not _in_multirun():
        print_results(folder)
    return validation_iia(rows)


def _log(loggers: list[Any], folder: Path, rows: list[Row]) -> None:
    """Give the rows to every logger.

    With one variable these are the chosen cell's rows on validation and test. With several
    variables they are all rows, each under its variable's name. A job without a validation IIA
    gives all its rows, too. W&B also gets all rows as a table, and the figures.
    """
    scored = scores_of(rows)
    several = len({row.variable for row in scored}) > 1
    shown = rows
    if scored and not several:
        chosen = select(rows)
        shown = rows_of(rows, chosen, split="validation") + rows_of(rows, chosen)
    metrics = {}
    for row in shown:
        # Such as test/changing/trained/iia. Rows of several cells may share a name: the logger then
        # gets the last of them.
        name = f"{row.split}/{row.subset}/{row.arm}/{row.metric}"
        if several:
            name = f"{row.variable}/{name}"
        metrics[name] = row.value
    for logger in loggers:
        logger.log_metrics(metrics)
        if isinstance(logger, WandbLogger):
            lines = []
            for row in rows:
                line = row.to_dict()
                # A column of a W&B table has one type, but these hold numbers, texts or lists.
                for name in ("position", "head", "layer", "draw"):
                    line[name] = str(line[name])
                lines.append(list(line.values()))
            logger.log_table("rows", columns=list(ROW_FIELDS), data=lines)
            for figure in sorted(folder.glob("*.png")):
                logger.log_image(figure.stem, [str(figure)])
        logger.finalize("success")


def _in_multirun() -> bool:
    """Whether this is one job of several.

    The summary at the end of a multirun then prints the results, and shows test figures of the
    chosen job only.
    """
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def validation_iia(rows: list[Row]) -> float | None:
    """The validation IIA on changing pairs of the best cell.

    With several variables it is the mean over them.

    Returns:
        A share between 0 and 1; None for a job without such a figure.
    """
    return max((row.value for row in scores_of(rows)), default=None)


def provenance() -> dict[str, Any]:
    """What a repeat of the run needs beside its config.

    Returns:
        The command, the git revision (None without a checkout) and whether files differed from it,
        versions, the number of threads, and the processor.
    """
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": {
            "revision": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain")),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor, and the vector instructions that torch uses on it.

    Another processor rounds differently, and training magnifies the difference.
    """
    facts: dict[str, str] = {}
    # Only Linux has this file; elsewhere Python says what it knows.
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            # The file lists every core; the first one is enough.
            facts.setdefault(name.strip(), value.strip())
    names = ("model name", "cpu family", "model", "stepping")
    parts = [f"{name} {facts[name]}" for name in names if name in facts] or [
        platform.processor() or platform.machine()
    ]
    return ", ".join([*parts, torch.backends.cpu.get_cpu_capability()])


def _git(*arguments: str) -> str | None:
    """The output of a git command in the package's checkout; None where there is no checkout."""
    # The folder that holds the package. In an installed wheel it is no checkout.
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    process = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return process.stdout.strip() if process.returncode == 0 else None


def main() -> None:
    """Entry point of `train.py` and `iit-train`."""
    # Hydra keeps the command before it runs anything.
    for override in sys.argv[1:]:
        key, _, value = override.partition("=")
        if key.endswith("network.token"):
            check_token(value)
    _composed()


@hydra.main(version_base="1.3", config_path="pkg://iit.conf", config_name="config")
def _composed(cfg: DictConfig) -> float | None:
    log.info("Run folder: %s", HydraConfig.get().runtime.output_dir)
    return run(cfg)
