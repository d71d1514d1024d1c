"""The figures that `make golden` compares bit by bit.

Each function gives {key: value}: a float is written exactly, an array by its checksum. They stand
on the public surface, so that a rebuilding of what is behind it leaves this file as it is.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from omegaconf import open_dict
from safetensors.torch import load_file

import iit
from iit.patching import (
    Contrast,
    ablate,
    attribute,
    lens_map,
    patch,
    path_patch,
    steer,
    trace,
)
from iit.result import read_metrics
from iit.run import run
from iit.tasks import ioi

Figures = dict[str, str]
SAVED = Path(__file__).parent / "saved"
QUIET = ("callbacks=none", "logger=csv")
WORDS = "the a red blue green dog cat bird sees likes hears and then it is".split()


def exact(value: Any) -> str:
    """A number, a text or a tensor, so that equal strings mean equal bits."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        return f"{array.dtype}{list(array.shape)} {digest}"
    return float(value).hex() if isinstance(value, float | np.floating) else str(value)


def of_job(*overrides: str) -> Figures:
    """The rows of a job, run as the command line runs it."""
    with tempfile.TemporaryDirectory() as folder:
        GlobalHydra.instance().clear()
        with initialize_config_module("iit.conf", version_base="1.3"):
            cfg = compose("config", [*overrides, *QUIET], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
                cfg.paths.run = folder
        with redirect_stdout(None):
            run(cfg)
        rows = read_metrics(folder).rows
        figures: Figures = {}
        for file in sorted(Path(folder).rglob("*.safetensors")):
            weights = load_file(file)
            figures |= {
                f"{file.parent.name} {name}": exact(weights[name]) for name in sorted(weights)
            }

    for row in rows:
        control = str(row.control) if row.draw is None else f"{row.control}/{row.draw}"
        names = (row.variable, row.split, row.subset, control, row.method, row.metric)
        key = " ".join(str(name) for name in names)
        figures[_free(figures, key)] = " ".join(
            exact(number) for number in (row.value, row.low, row.high, row.n)
        )
    return figures


def _free(figures: Figures, key: str) -> str:
    """The key, numbered where several rows have it."""
    number = 2
    name = key
    while name in figures:
        name = f"{key} ({number})"
        number += 1
    return name


def hand_written_equality() -> Figures:
    """DAS with all controls on the network that is written by hand."""
    sizes = ("data.n_train=640", "data.n_val=200", "data.n_test=300", "trainer.max_epochs=2")
    return of_job("+experiment=das_equality_by_hand", "trust=full", "trust.resamples=200", *sizes)


def trained_equality() -> Figures:
    """A few steps of interchange intervention training."""
    sizes = ("data.n_train=4096", "data.n_val=500", "data.n_test=500", "trainer.max_epochs=2")
    return of_job("+experiment=iit_equality", *sizes)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def twenty_steps() -> Figures:
    """The losses of 20 steps of DAS on SmolLM2, and what is then right on validation."""
    lm = iit.load_network("smollm2")
    pairs = iit.Pairs.sample(ioi(), lm, n_train=64, n_val=16, n_test=4, seed=0)
    torch.manual_seed(0)
    site = iit.Site("block_output", layer=17, position="s2")
    edit = iit.Edit(site, iit.LowRankRotatedSpaceIntervention(576, 16))
    alignment = iit.Alignment(lm, {"subject_position": edit})
    losses = Losses()
    trainer = partial(L.Trainer, enable_progress_bar=False, enable_model_summary=False)
    fitted = iit.fit(
        alignment, pairs, max_epochs=5, batch_size=16, callbacks=[losses], trainer=trainer
    )
    figures = {f"loss {step}": exact(loss) for step, loss in enumerate(losses.losses)}
    return figures | {"kept epoch": str(fitted.epoch), "validation": exact(fitted.value)}


def tiny() -> iit.LanguageModel:
    """The small transformer that is saved here."""
    network = iit.load_network(str(SAVED / "network"))
    assert isinstance(network, iit.LanguageModel)
    return network


def tiny_batches(lm: iit.LanguageModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """(bases, sources): three prompts each, with the roles `noun` and `verb`."""
    bases = ["the red dog sees", "a blue cat likes", "the green bird hears"]
    sources = ["the blue cat likes", "a green dog sees", "the red dog likes"]

    def encoded(texts: list[str], answers: list[str]) -> dict[str, Any]:
        words = [text.split() for text in texts]
        nouns = [f" {row[2]}" for row in words]
        verbs = [f" {row[3]}" for row in words]
        return lm.encode(texts, positions={"noun": nouns, "verb": verbs}, answers=answers)

    return encoded(bases, [" the", " a", " it"]), encoded(sources, [" is", " and", " then"])


def maps() -> Figures:
    """One map of each kind on the small transformer."""
    lm = tiny()
    base, source = tiny_batches(lm)
    contrast = Contrast.of_batches(lm, base, source)
    metrics = ["logit_difference", "probability"]
    heads = {"components": "attention_value_output", "heads": "all", "positions": ["last"]}
    question = base | {"positions": base["positions"] | {"subject": base["positions"]["noun"]}}
    effects = {
        "patch": patch(
            lm,
            contrast,
            components=["block_output", "mlp_output"],
            positions=["noun", "last"],
            metric=[*metrics, "kl"],
        ),
        "patch heads": patch(lm, contrast, metric=metrics, **heads),
        "path": path_patch(
            lm, contrast, iit.Site("query_output", layer=1, head=0, position="last"), metric=metrics
        ),
        "trace": trace(lm, question, positions=["noun", "last"], draws=2),
        "attribute": attribute(lm, contrast, positions=["noun", "last"], metric=metrics),
        "attribute, 3 steps": attribute(
            lm, contrast, positions=["noun", "last"], metric=metrics, steps=3
        ),
        "ablate": ablate(lm, contrast, kind="mean", positions=["noun", "last"], metric=metrics),
        "lens": lens_map(lm, contrast, metric=metrics),
    }
    figures: Figures = {}
    for name, effect in effects.items():
        for metric, values in effect.values.items():
            for cell, value in zip(effect.cells, values.mean(1), strict=True):
                figures[f"{name} {metric} {cell}"] = exact(float(value))
    return figures


def steering() -> Figures:
    """Steered texts, and greedy generation under a swap."""
    lm = tiny()
    base, source = tiny_batches(lm)
    site = iit.Site("block_output", layer=0)
    vector = torch.linspace(-1, 1, lm.model.config.hidden_size)
    add = iit.AdditionIntervention(vector)
    score = iit.Score(compare="contains")
    steered = steer(
        lm,
        ["the red dog", "a cat"],
        site,
        {"add": add},
        [1, 4],
        {"dog": lambda texts: [score.is_right(text.lower(), {"label": "dog"}) for text in texts]},
        max_new_tokens=6,
    )
    figures = {
        f"{metric} {at}": exact(value)
        for metric, values in steered.values.items()
        for at, value in enumerate(values)
    }

    swap = iit.IntervenedModel(
        lm, {iit.Site("block_output", layer=0, position="noun"): iit.VanillaIntervention()}
    )
    for scope in ("prompt", "all"):
        edited = swap if scope == "prompt" else iit.IntervenedModel(lm, {site: add})
        ids = edited.generate(
            base,
            source if scope == "prompt" else None,
            scope=scope,
            max_new_tokens=5,
            do_sample=False,
        )
        figures[f"generate, {scope}"] = str(ids.tolist())
    return figures


def pairs_of_a_file() -> Figures:
    """The job on one's own pairs, which are read from a file."""
    return of_job(
        "data=file",
        f"data.path={SAVED / 'pairs.jsonl'}",
        "variable=subject_position",
        "network=hub",
        f"network.name={SAVED / 'network'}",
        "site={component: block_output, layer: 0, position: noun}",
        "rank=2",
        "trainer.max_epochs=2",
        "trainer.batch_size=8",
        "trust.resamples=200",
    )


def saved_folders() -> Figures:
    """What folders give that an earlier version wrote."""
    lm = tiny()
    base, source = tiny_batches(lm)
    figures = {"network": exact(lm.model(base["input_ids"]).logits)}
    edited = iit.IntervenedModel.from_pretrained(SAVED / "intervened", lm)
    figures["intervened model"] = exact(edited.answer_logits(base, source))
    alignment = iit.Alignment.from_pretrained(SAVED / "alignment", lm)
    figures["alignment"] = exact(alignment.answer_logits(base, {"noun": source}))
    figures["alignment's rows"] = str(len(alignment.rows))
    captured = iit.Captured.load(SAVED / "captured")
    figures |= {f"captured {site}": exact(rows) for site, rows in captured.items()}
    theirs = iit.IntervenedModel.from_pyvene(SAVED / "pyvene", lm, positions=["noun"])
    figures["pyvene"] = exact(theirs.answer_logits(base, source))
    classifier = iit.load_network(str(SAVED / "classifier"))
    figures["classifier"] = exact(classifier.model(torch.linspace(-1, 1, 16).view(4, 4)))
    return figures


ALL = (
    hand_written_equality,
    trained_equality,
    twenty_steps,
    maps,
    steering,
    pairs_of_a_file,
    saved_folders,
)


def measured(names: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Figures]]:
    """(name, figures) of each group, one after the other."""
    for function in ALL:
        if names is None or function.__name__ in names:
            yield function.__name__, function()
