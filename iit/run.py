"""A run: compose the config, seed, do the job, write the rows with their provenance."""

import os
import sys
import warnings
from pathlib import Path

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from iit.job.command import command, in_multirun, recorded
from iit.job.declared import check_chosen, check_numbers, check_token
from iit.job.dry_run import dry_run
from iit.job.provenance import provenance
from iit.job.resources import share_machine
from iit.report import print_results
from iit.report.loggers import finish_wandb, log_results
from iit.result import write_metrics
from iit.result.select import validation_iia


def run(cfg: DictConfig) -> float | None:
    """Run the job that the config describes, and write its rows.

    At the start it writes `config.yaml` to the run's folder, at the end `metrics.json`. A folder
    without `metrics.json` holds no result. Every logger gets rows, too (see `log_results`).

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
    if in_multirun():
        share_machine(HydraConfig.get())
        # The bars of several jobs would garble each other: each job writes lines.
        os.environ.setdefault("TTY_INTERACTIVE", "0")
    if cfg.dry_run:
        if wrong := dry_run(cfg).wrong:
            raise ValueError("\n".join(wrong))
        return None
    # Lightning's own business.
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    folder = Path(cfg.paths.run)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    L.seed_everything(cfg.seed, verbose=False)
    try:
        loggers = list(instantiate(cfg.logger).values()) if cfg.logger else []
        # `_target_` in the config names the job's function.
        rows, facts = instantiate(cfg.job)(cfg, folder, loggers)
        # Only a finished run has this file. Loggers come after it: one that fails costs no result.
        write_metrics(folder, rows, **facts, **provenance())
        log_results(loggers, folder)
    finally:
        finish_wandb()
    if not in_multirun():
        print_results(folder)
    return validation_iia(rows)


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
