"""Prompts for causal tracing, and noise on the embeddings of their subjects."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from iit.batch import IGNORED, Batch
from iit.intervened import Activations, Edit, IntervenedModel
from iit.intervention import AdditionIntervention
from iit.intervention.precision import widened
from iit.network.inputs import prepare
from iit.patching.cell_runs import CellGroup, CellRows, EditedCells
from iit.patching.contrast import (
    AnyNetwork,
    Contrast,
    Contrasted,
    batch_rows,
    contrast_of,
    module_of,
    prompts_of,
)
from iit.site import Site, resolve

EMBEDDING = Site("embedding_output")


@final
@dataclass(frozen=True, eq=False)
class Corruption:
    """One draw of noise on the subject of each prompt.

    model: the network under the noise alone, an edit called "noise".
    values: Tensor[prompt, position, width], 0 at tokens other than the subject's.
    numbers: the tokens of each prompt → its number.
    """

    model: IntervenedModel
    values: Tensor
    numbers: Mapping[tuple[int, ...], int]

    def source(self, prompts: Tensor, lengths: Tensor) -> Activations:
        """The values that the edit "noise" adds to some prompts, at the embedding.

        They are Tensor[batch, position, width], as long as the longest of the prompts.

        prompts, lengths: LongTensor[batch], the numbers of the prompts and how many tokens they
            have.
        """
        values = self.values[prompts][:, : int(lengths.max())]
        return Activations({EMBEDDING: values}, {EMBEDDING: lengths})

    def applied(self, batch: Batch) -> AbstractContextManager[Any]:
        """The context in which the network's next forward is the corrupted run of these prompts."""
        lengths = batch.kwargs["attention_mask"].sum(1)
        numbers = []
        # The batch knows its prompts by their tokens, and not by their numbers.
        for ids, n in zip(batch.tokens.tolist(), lengths.tolist(), strict=True):
            numbers.append(self.numbers[tuple(ids[:n])])
        source = self.source(torch.tensor(numbers), lengths)
        return self.model.edited_run(batch, {"noise": source}).applied()

    def edit_of(self, group: CellGroup) -> EditedCells:
        """Corrupted runs of the prompts with nothing else done to them."""

        def logits(rows: CellRows) -> Tensor:
            lengths = rows.base["attention_mask"].sum(1)
            return self.model.answer_logits(rows.base, {"noise": self.source(rows.pair, lengths)})

        return EditedCells(self.model, logits)


def questions(network: AnyNetwork, prompts: Contrasted | Mapping[str, Any]) -> Contrast:
    """Distinct prompts, right-padded, as bases and as sources of a contrast.

    The label is each prompt's own answer. `own` is another one, where it is known.

    Raises:
        ValueError: for inputs that are not tokens, and prompts without an answer of their own or
            with one of several tokens.
    """
    if isinstance(prompts, Contrasted):
        contrast = contrast_of(network, prompts)
        base = contrast.base
        answer = contrast.own
        other = contrast.label
        # The first pair of each base, in the order of the pairs.
        first = np.unique(contrast.clusters, return_index=True)[1]
        rows = torch.from_numpy(np.sort(first))
    else:
        base = prompts_of(prompts)
        answer = prompts.get("answer")
        other = None
        rows = torch.arange(0 if answer is None else len(answer))

    if answer is None:
        raise ValueError(
            "Tracing asks for each prompt's own answer: encode with `answers=`, or give pairs that "
            "know `base_answer`."
        )
    if answer.shape[1] > 1:
        raise ValueError(
            "Tracing restores a prompt's tokens, not those of an answer that follow: give "
            "answers of one token."
        )

    batch = prepare(module_of(network), base)
    if batch.lengths is None or "input_ids" not in batch.kwargs:
        raise ValueError(
            "Tracing corrupts the embeddings of tokens: the inputs have no `input_ids`."
        )

    ids = batch.kwargs["input_ids"].cpu()
    clean = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < batch.lengths.cpu().unsqueeze(1)).long(),
        "positions": {role: index.cpu() for role, index in batch.positions.items()},
    }
    clean = batch_rows(clean, rows)
    other = None if other is None else other[rows]
    return Contrast(network, clean, clean, answer[rows], other, np.arange(len(rows)))


def corruption(clean: Contrast, subject: Tensor, scale: float, seed: int, draw: int) -> Corruption:
    """Noise at the subject: h + scale·ε with ε ~ N(0, 1).

    ε depends on the seed, the draw and the prompt's tokens alone.

    subject: LongTensor[prompt, position], −100 padded.
    """
    model = IntervenedModel(clean.network, {"noise": Edit(EMBEDDING, AdditionIntervention())})
    embedding: Any = resolve(clean.module, EMBEDDING).module
    weight = embedding.weight
    ids = clean.base["input_ids"]
    lengths = clean.base["attention_mask"].sum(1).tolist()
    values = torch.zeros(*ids.shape, weight.shape[1], dtype=weight.dtype)
    numbers: dict[tuple[int, ...], int] = {}
    for number, columns in enumerate(subject):
        prompt = tuple(ids[number, : lengths[number]].tolist())
        numbers[prompt] = number
        columns = columns[columns != IGNORED]
        # The prompt's tokens are part of the seed, so neither its row nor its batch matters.
        generator = np.random.default_rng([seed, draw, *prompt])
        noise = scale * generator.standard_normal((len(columns), weight.shape[1]))
        values[number, columns] = torch.from_numpy(noise).to(weight.dtype)
    return Corruption(model, values.to(weight.device), numbers)


def subject_deviation(clean: Contrast, subject: Tensor) -> float:
    """σ: the standard deviation of all entries of the embeddings of the subjects' tokens.

    It is of the embedding's output: some networks scale the weights of their embeddings.

    subject: LongTensor[prompt, position], −100 padded.
    """
    tokens = clean.base["input_ids"].gather(1, subject.clamp(min=0))[subject != IGNORED]
    embedding: Any = resolve(clean.module, EMBEDDING).module
    with torch.no_grad():
        embedded = widened(embedding(tokens.to(embedding.weight.device)))
    return float(embedded.std(correction=0))
