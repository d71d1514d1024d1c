"""Where a run's figures go beside `metrics.json`: CSV files, TensorBoard, Weights & Biases (W&B).

Metrics have the same names in all of them; `docs/dashboards.md` lists them.
"""

import logging
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger
from networkx.utils import flatten
from omegaconf import OmegaConf

from iit.result import ROW_FIELDS, Row, read_metrics, rows_of, scores_of, select, write_text
from iit.result.record import SWEEP, read_record

log = logging.getLogger(__name__)


class WandbRun(WandbLogger):
    """A W&B run that costs no result, whatever becomes of W&B.

    A run that should be online, and cannot be, is kept offline. In a sweep the name says what
    differs from other jobs, and the group is the sweep's folder. A run that goes on in the same
    folder has the same id.

    Arguments:
        dir: the run's folder, which holds `config.yaml`.
        config: what W&B's config has beside that file.
        tags: texts, and lists of texts.
        options: others of `wandb.init`. An id, name, group or job type that is None is filled in.
    """

    def __init__(self, dir: str, config: dict, tags: list, **options: Any):
        content: Any = OmegaConf.to_container(OmegaConf.load(f"{dir}/config.yaml"))
        id_file = Path(dir, "wandb_id")
        if not id_file.is_file():
            write_text(id_file, secrets.token_hex(4))
        described = {
            "dir": dir,
            "id": id_file.read_text(),
            "name": content["name"],
            "job_type": HydraConfig.get().runtime.choices["job"],
        }
        for key, value in (described | _in_sweep()).items():
            options[key] = options.get(key) or value
        # Where things are on this machine tells nothing.
        for key in ("paths", "logger", "store"):
            del content[key]
        # Of iit.tasks.ioi the last word is enough. W&B refuses longer tags, and equal ones.
        options["tags"] = {re.sub(r"^iit\.\w+\.", "", tag)[-64:] for tag in flatten(tags) if tag}
        options["config"] = content | config
        try:
            run = wandb.init(**options)
        except wandb.Error as error:
            # W&B's service holds the run's id until it ends.
            wandb.teardown()
            options["mode"] = "offline"
            run = wandb.init(**options)
            log.warning(
                f"W&B cannot be used online: {error} This run is kept offline. To send it, run "
                f"`wandb login`, then `wandb sync {Path(run.dir).parent}`. WANDB_MODE=offline does "
                "not try."
            )
        super().__init__(save_dir=dir, experiment=run)
        run.define_metric("*", step_metric="trainer/global_step")
        # The summary has the highest validation IIA, and the last value of any other metric.
        run.define_metric("val/iia_changing", step_metric="trainer/global_step", summary="max")

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        """Log metrics, tables or pictures, if W&B takes them."""
        with no_result_lost(self):
            super().log_metrics(*arguments, **options)


def _in_sweep() -> dict:
    """The group and the name of a job of a sweep, such as "layer=17 rank=64 seed=0"."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return {}
    sweep = Path(hydra.sweep.dir)
    swept = read_record(sweep / SWEEP).get("swept")
    parts = []
    for override in hydra.overrides.task:
        key, _, value = override.lstrip("+").partition("=")
        if not swept or key in swept:
            parts.append(f"{key.rpartition('.')[2]}={value}")
    return {"group": sweep.name, "name": " ".join(parts)}


def log_results(loggers: list, folder: Path) -> None:
    """Give the results in a run's folder to every logger; one that fails leaves a warning.

    W&B also gets all rows as a table, the pictures, the verdict and the alignment.
    """
    metrics = read_metrics(folder)
    for logger in loggers:
        with no_result_lost(logger):
            logger.log_metrics(logged_metrics(metrics.rows))
            if isinstance(logger, WandbLogger):
                _log_to_wandb(logger, folder, metrics)
            logger.finalize("success")


def logged_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """{SPLIT/SUBSET/ARM/METRIC: value}, such as `test/changing/trained/iia`.

    With one variable these are the chosen cell's rows on validation and test. With several
    variables they are all rows, each under its variable's name. A job without a validation IIA
    gives all its rows, too. Figures of the alignment itself also have NAME/low and NAME/high. A
    name that rows of several cells share would say nothing, and is left out.
    """
    variables = {row.variable for row in scores_of(rows)}
    if len(variables) == 1:
        chosen = select(rows)
        rows = rows_of(rows, chosen, split="validation") + rows_of(rows, chosen)
    named: dict[str, list[Row]] = {}
    for row in rows:
        name = f"{row.split}/{row.subset}/{row.arm}/{row.metric}"
        if len(variables) > 1:
            name = f"{row.variable}/{name}"
        named.setdefault(name, []).append(row)
    metrics = {}
    for name, (row, *others) in named.items():
        if not others:
            metrics[name] = row.value
            if row.control is None:
                metrics |= {f"{name}/low": row.low, f"{name}/high": row.high}
    return metrics


def _log_to_wandb(logger: WandbLogger, folder: Path, metrics: Any) -> None:
    lines = []
    for row in metrics.rows:
        line = row.to_dict()
        # A column of a W&B table has one type, but these hold numbers, texts or lists.
        for name in ("position", "head", "layer", "draw"):
            line[name] = str(line[name])
        lines.append(list(line.values()))
    logger.log_table("rows", columns=list(ROW_FIELDS), data=lines)
    for figure in folder.glob("*.png"):
        logger.log_image(figure.stem, [str(figure)])
    verdicts = metrics.facts.get("verdict", ())
    logger.experiment.summary["verdict"] = ", ".join(verdict["outcome"] for verdict in verdicts)
    saved = list(folder.glob("alignment/*"))
    if saved:
        name = re.sub(r"[^\w.-]", "-", str(metrics.rows[0].experiment))
        artifact = wandb.Artifact(name, "alignment", metadata={"verdict": verdicts})
        for path in saved:
            # The file is read where it is, without a second copy.
            artifact.add_file(str(path), policy="immutable")
        logger.experiment.log_artifact(artifact)


@contextmanager
def no_result_lost(logger: Any) -> Iterator[None]:
    """Turn a logger's failure into a warning."""
    try:
        yield
    except Exception as error:
        log.warning(
            f"{type(logger).__name__} failed: {error!r}. metrics.json does not depend on it. What "
            "an online W&B run lacks is in the run's folder: `wandb sync FOLDER/wandb/run-…`."
        )


def finish_wandb() -> None:
    """End W&B's run, as failed where an error is on its way.

    Jobs of a multirun may share a process, and each has a W&B run of its own.
    """
    with no_result_lost(wandb.run):
        wandb.finish(int(any(sys.exc_info())))
