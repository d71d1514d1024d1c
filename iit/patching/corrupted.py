"""Prompts and answers to be traced, and noise on the embeddings of their subjects."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, Edit, IntervenedModel
from iit.intervened.batch import Batch, prepare
from iit.intervention import AdditionIntervention
from iit.intervention.precision import widened
from iit.network import Network
from iit.network.answering import IGNORED
from iit.patching.contrast import Contrast
from iit.site import Site, resolve

EMBEDDING = Site("embedding_output")


@final
@dataclass(frozen=True, eq=False)
class Corruption:
    """One draw of noise on the subject of each prompt.

    model: the network under the noise alone, an edit called "noise". values: Tensor[prompt, position, width], 0 beside the subject.
    numbers: the tokens of each prompt → its number.
    """

    model: IntervenedModel
    values: Tensor
    numbers: Mapping[tuple[int, ...], int]

    def source(self, prompts: Tensor, lengths: Tensor) -> Activations:
        """What the edit "noise" adds to prompts of these numbers and lengths, LongTensor[batch] each."""
        return Activations({EMBEDDING: self.values[prompts][:, : int(lengths.max())]}, {EMBEDDING: lengths})

    def applied(self, batch: Batch) -> AbstractContextManager[Any]:
        """The context in which the network's next forward is the corrupted run of these prompts."""
        lengths = batch.kwargs["attention_mask"].sum(1)
        prompts = [self.numbers[tuple(row[:n])] for row, n in zip(batch.tokens.tolist(), lengths.tolist(), strict=True)]
        return self.model.edited_run(batch, {"noise": self.source(torch.tensor(prompts), lengths)}).applied()


def questions(
    network: Network | nn.Module,
    prompts: Pairs | EncodedPairs | Contrast | Mapping[str, Any],
    split: str,
    variable: str | None,
    only: Sequence[int] | None,
) -> Contrast:
    """Distinct prompts, right-padded, as bases and as sources; the label is their own answer, `own` another one where it is known.

    Raises ValueError for inputs that are not tokens, prompts without an answer of their own or with one of several tokens, and
    numbers of prompts that do not exist.
    """
    if isinstance(prompts, Pairs | EncodedPairs):
        prompts = Contrast.of(network, prompts, split=split, variable=variable)
    if isinstance(prompts, Contrast):
        base, answer, other = prompts.base, prompts.own, prompts.label
        rows = np.sort(np.unique(prompts.clusters, return_index=True)[1])
    else:
        base, answer, other = prompts, prompts.get("answer"), None
        rows = np.arange(0 if answer is None else len(answer))
    if answer is None:
        raise ValueError(
            "Tracing asks for each prompt's own answer: encode with `answers=`, or give pairs that know `base_answer`."
        )
    if answer.shape[1] > 1:
        raise ValueError("Tracing restores a prompt's tokens, not those of an answer that follow: give answers of one token.")
    if only is not None:
        if not set(only) <= set(range(len(rows))):
            raise ValueError(f"only={list(only)}: the prompts have the numbers 0 to {len(rows) - 1}.")
        rows = rows[list(only)]
    batch = prepare(network.model if isinstance(network, Network) else network, {k: v for k, v in base.items() if k != "answer"})
    if batch.lengths is None or "input_ids" not in batch.kwargs:
        raise ValueError("Tracing corrupts the embeddings of tokens: the inputs have no `input_ids`.")
    index = torch.from_numpy(rows)
    lengths = batch.lengths.cpu()[index]
    columns = torch.arange(int(lengths.max()))
    clean = {
        "input_ids": batch.kwargs["input_ids"].cpu()[index][:, columns],
        "attention_mask": (columns < lengths.unsqueeze(1)).long(),
        "positions": {role: where.cpu()[index] for role, where in batch.positions.items()},
    }
    return Contrast(network, clean, clean, answer[index], None if other is None else other[index], np.arange(len(rows)))


def corruption(clean: Contrast, subject: Tensor, scale: float, seed: int, draw: int) -> Corruption:
    """h + scale·ε at the subject, ε ~ N(0, 1), which depends on the seed, the draw and the prompt's tokens alone.

    subject: LongTensor[prompt, position], −100 padded.
    """
    model = IntervenedModel(clean.network, {"noise": Edit(EMBEDDING, AdditionIntervention())})
    embedding: Any = resolve(model.network, EMBEDDING).module
    weight = embedding.weight
    lengths = clean.base["attention_mask"].sum(1).tolist()
    prompts = [tuple(ids[:n]) for ids, n in zip(clean.base["input_ids"].tolist(), lengths, strict=True)]
    values = torch.zeros(*clean.base["input_ids"].shape, weight.shape[1], dtype=weight.dtype)
    for number, (prompt, columns) in enumerate(zip(prompts, subject, strict=True)):
        columns = columns[columns != IGNORED]
        drawn = np.random.default_rng([seed, draw, *prompt]).standard_normal((len(columns), weight.shape[1]))
        values[number, columns] = torch.from_numpy(scale * drawn).to(weight.dtype)
    return Corruption(model, values.to(weight.device), {prompt: number for number, prompt in enumerate(prompts)})


def subject_deviation(clean: Contrast, subject: Tensor) -> float:
    """σ: the standard deviation of all entries of the embeddings that the network gives the subjects' tokens.

    Some networks scale the weights of their embeddings; what counts is what comes out.

    subject: LongTensor[prompt, position], −100 padded.
    """
    network = clean.network.model if isinstance(clean.network, Network) else clean.network
    tokens = clean.base["input_ids"].gather(1, subject.clamp(min=0))[subject != IGNORED]
    embedding: Any = resolve(network, EMBEDDING).module
    with torch.no_grad():
        embedded = widened(embedding(tokens.to(embedding.weight.device)))
    return float(embedded.std(correction=0))
