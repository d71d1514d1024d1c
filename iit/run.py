"""A run: compose the config, seed, do the job, write the rows with their provenance."""

import sys
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from iit.job.command import command, in_multirun, recorded
from iit.job.declared import check_chosen, check_numbers, check_token
from iit.job.dry_run import dry_run
from iit.job.provenance import provenance
from iit.report import print_results
from iit.result import ROW_FIELDS, Row, rows_of, scores_of, select, write_metrics
from iit.result.select import validation_iia


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
        ValueError: where the config lacks what an experiment sets, has another value in place of a
            number, or holds a token; where a dry run finds something wrong.
    """
    check_token(OmegaConf.select(cfg, "network.token"))
    check_chosen(cfg)
    check_numbers(cfg)
    if cfg.dry_run:
        if wrong := dry_run(cfg).wrong:
            raise ValueError("\n".join(wrong))
        return None
    folder = Path(cfg.paths.run)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    L.seed_everything(cfg.seed, verbose=False)
    loggers = list(instantiate(cfg.logger).values()) if cfg.logger else []
    try:
        # `_target_` in the config names the job's function.
        rows, facts = instantiate(cfg.job)(cfg, folder, loggers)
        _log(loggers, folder, rows)
        # At the very end: only a finished run has this file.
        write_metrics(folder, rows, **facts, **provenance())
    finally:
        # Jobs of a multirun may share a process, and each has a W&B run of its own.
        wandb.finish()
    if not in_multirun():
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


def main() -> None:
    """Entry point of `train.py` and `iit-train`."""
    with command():
        # Hydra keeps the command before it runs anything.
        for override in sys.argv[1:]:
            key, _, value = override.partition("=")
            if key.endswith("network.token"):
                check_token(value)
        _composed()


@hydra.main(version_base="1.3", config_path="pkg://iit.conf", config_name="config")
def _composed(cfg: DictConfig) -> float | None:
    return recorded(run, cfg)
