"""Checks of what a config declares, before weights load."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from inspect import formatannotation, signature
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pandas import json_normalize

from iit.alignment import several
from iit.alignment.initial import STARTS
from iit.alignment.overlap import check_declared
from iit.alignment.processes import n_processes
from iit.alignment.side_by_side import checked_monitor

# Keys that take whole numbers and belong to no `_target_`, so that no annotation says so.
_WHOLE = ("rank", "seed", "trainer.max_epochs", "trainer.batch_size", "trainer.eval_batch_size")
# Parts of an annotation → words for the error.
_WORDS = {"collections.abc.": "", "int": "a whole number", "float": "a number", "None": "null"}
# The type of a config's value → what the annotation has to hold. A float takes an int, too.
_FITS = {int: r"\b(int|float)\b", float: r"\bfloat\b", str: r"\bstr\b", bool: r"\bbool\b"}


def check_chosen(cfg: DictConfig) -> None:
    """Raises ValueError for keys that are `???`, such as those that only an experiment sets.

    A site may have such keys: not every job reads it. A causal model is not asked for where pairs
    are one's own. It also refuses a score that the job does not read.
    """
    nodes = _flat(cfg)
    missing = {key for key, value in nodes.items() if value == "???"}
    unset = {key for key in missing if not key.startswith("site.")}
    # OmegaConf takes a key without a value for one that is not there.
    check_set(unset - {"causal"} if "data.path" in nodes else unset)
    job, kind = cfg.job._target_, instantiate(cfg.score).kind
    taken = {"iit.job.align": kind, "iit.job.Steering": "generated"}.get(job, "argmax")
    if kind != taken:
        raise ValueError(f"score={kind}: the job {job} takes score={taken}.")


def check_token(token: Any) -> None:
    """Raises ValueError for a token in place of the environment variable that holds it.

    The message does not repeat the token: configs, commands and logs are kept.
    """
    if isinstance(token, str) and token not in (*os.environ, "null", "true", "false"):
        raise ValueError(
            "network.token has to be the name of an environment variable that is set and holds the "
            "token, such as HF_TOKEN: a token itself would be stored with the run."
        )


def check_set(unset: Iterable[str]) -> None:
    """Raises ValueError where there are keys that nothing sets."""
    if names := ", ".join(sorted(unset)):
        raise ValueError(
            f"Nothing sets {names}. Choose an experiment (python train.py +experiment=das_ioi; "
            "python train.py --help lists all), or set every key yourself, such as causal=ioi "
            "variable=subject_position site.layer=17 site.position=s2."
        )


def config_changes(cfg: DictConfig) -> list[dict[str, Any]]:
    """The keys in which a config differs from the defaults, with default and value.

    Interpolations are compared as they are written. A key that is not there has None.
    """
    default, changed = _flat(composed([])), _flat(cfg)
    return [
        {"key": key, "default": default.get(key), "value": changed.get(key)}
        for key in default | changed
        if default.get(key) != changed.get(key)
    ]


def _flat(cfg: DictConfig) -> dict[str, Any]:
    """{key with dots: value}; a list is one value."""
    text = json.dumps(OmegaConf.to_container(cfg), default=str)
    # What JSON lacks, such as infinity, becomes a text.
    return json_normalize(json.loads(text, parse_constant=str)).to_dict("records")[0]


def composed(overrides: list[str]) -> DictConfig:
    """The config as the command line composes it from these overrides."""
    # Within a run Hydra is initialised already, and would refuse to be again.
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides)
    with initialize_config_module("iit.conf", version_base="1.3"):
        return compose("config", overrides)


def check_config(cfg: DictConfig, *, trains_network: bool) -> None:
    """Refuse what cannot be, whatever the network.

    It checks the site, the trust, the module with its objective and schedules, the monitor, the
    start, the number of epochs, and the processes. The module has to train what the job trains.
    Units of edits must not overlap.

    Arguments:
        trains_network: whether the job trains the network, and not an alignment on a frozen one.

    Raises:
        ValueError: for any of these. An error from within a `_target_` is an
            InstantiationException of Hydra.
    """
    # The site is one of them, where the alignment has no sites of its own.
    check_set(OmegaConf.missing_keys(cfg.alignment))
    instantiate(cfg.trust)
    module: Any = instantiate(cfg.module)
    # `_partial_` gives a `functools.partial`; its `func` is the class.
    kind = getattr(module, "func", module)
    # A module of one's own that does not say what it trains is let through.
    if getattr(kind, "trains_network", trains_network) != trains_network:
        raise ValueError(
            f"The job {cfg.job._target_} does not train what module._target_={cfg.module._target_} "
            "trains: module=iit trains the network, for job=train_network; module=das trains "
            "interventions on a frozen network, for all other jobs."
        )
    if cfg.monitor is not None:
        checked_monitor(cfg.monitor, getattr(kind, "monitors", (cfg.monitor,)))
    if cfg.start not in STARTS:
        raise ValueError(f"start={cfg.start!r} is none of {list(STARTS)}.")
    epochs = cfg.trainer.max_epochs
    if epochs < 1 and epochs != -1:
        raise ValueError(
            f"trainer.max_epochs={epochs}: training needs an epoch at least (-1: no end)."
        )
    # How many GPUs there are only the run can tell.
    smallest = min(cfg.trainer.batch_size, cfg.trainer.eval_batch_size)
    n_processes(instantiate(cfg.trainer.trainer), torch.device("cpu"), smallest)
    # Only `several` takes edits side by side, so only they can overlap.
    declared: Any = instantiate(cfg.alignment)
    if getattr(declared, "func", None) is several:
        check_declared(declared.keywords["edits"], declared.keywords.get("inert"))


def check_numbers(node: DictConfig, path: str = "") -> None:
    """Check that every key that takes a number has one, by the annotation of its `_target_`.

    Arguments:
        node: a part of the config; the parts within it are checked, too.
        path: where the node is, with a dot at the end.

    Raises:
        ValueError: for a key that has another value in place of a number.
    """
    parameters: Any = {}
    if "_target_" in node:
        with suppress(Exception):  # whoever calls it says what is wrong
            parameters = signature(get_object(node._target_)).parameters
    for key in node:
        name, parameter = f"{path}{key}", parameters.get(str(key))
        kind = "int" if name in _WHOLE else formatannotation(getattr(parameter, "annotation", None))
        # A mandatory key without a value (`???`) cannot be read.
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            check_numbers(value, f"{name}.")
        # Only annotations with a number in them are checked. A mapping is read like a list of its
        # values.
        if re.search(_FITS[int], kind) and not _admits(kind.replace("Mapping[str, ", "["), value):
            for word, plain in _WORDS.items():
                kind = kind.replace(word, plain)
            raise ValueError(f"{name}={value}: this key has to be {kind}.")


def _admits(kind: str, value: Any, *, listed: bool = False) -> bool:
    """Whether a config's value fits an annotation; an object (with a `_target_`) always does.

    Arguments:
        kind: the annotation as text.
        listed: whether the value is an entry of a list or mapping.
    """
    if not OmegaConf.is_config(value):
        # `Sequence[float]` takes floats as entries, not a float by itself. What stands in the
        # brackets of a Union or an Optional counts by itself.
        if not listed:
            kind = re.sub(r"(?<!Union)(?<!Optional)\[[^\[\]]*\]", "", kind)
        # null, and any type without a rule of its own, fits where None does.
        return bool(re.search(_FITS.get(type(value), "None|Optional"), kind))
    entries = value.values() if isinstance(value, DictConfig) else value
    return "_target_" in value or (
        "[" in kind and all(_admits(kind, entry, listed=True) for entry in entries)
    )
