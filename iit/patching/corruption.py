"""Prompts for causal tracing, and noise on the embeddings of their subjects."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iit.batch import IGNORED, Batch
from iit.intervened import Activations, Edit, IntervenedModel
from iit.intervention import AdditionIntervention
from iit.intervention.precision import widened
from iit.network.inputs import prepare
from iit.patching.cell_runs import CellGroup, EditedCells
from iit.patching.contrast import (
    AnyNetwork,
    Contrast,
    Contrasted,
    EncodedBatch,
    batch_rows,
    contrast_of,
    module_of,
    prompt_numbers,
    prompts_of,
)
from iit.site import Site, resolve

EMBEDDING = Site("embedding_output")


class Corruption(NamedTuple):
    """One draw of noise on the subject of each prompt.

    model: the network under the noise alone, an edit called "noise".
    values: the tokens of each prompt → Tensor[position, width], 0 at tokens other than the
        subject's.
    """

    model: IntervenedModel
    values: Mapping[tuple[int, ...], Tensor]

    def source(self, inputs: EncodedBatch) -> Activations:
        """The values that the edit "noise" adds to some prompts, at the embedding.

        They are Tensor[batch, position, width], as long as the longest of the prompts.
        """
        lengths = inputs["attention_mask"].sum(1)
        values = []
        for ids, n in zip(inputs["input_ids"].tolist(), lengths.tolist(), strict=True):
            values.append(self.values[tuple(ids[:n])])
        return Activations(
            {EMBEDDING: pad_sequence(values, batch_first=True)}, {EMBEDDING: lengths}
        )

    def applied(self, batch: Batch) -> AbstractContextManager[Any]:
        """The context in which the network's next forward is the corrupted run of these prompts."""
        return self.model.edited_run(batch, {"noise": self.source(batch.kwargs)}).applied()

    def edit_of(self, group: CellGroup) -> EditedCells:
        """Corrupted runs of the prompts with nothing else done to them."""
        model = self.model
        return model, lambda rows: model.answer_logits(rows.base, self.source(rows.base))


def questions(network: AnyNetwork, prompts: Contrasted | EncodedBatch) -> Contrast:
    """Distinct prompts, right-padded, as bases and as sources of a contrast.

    The label is each prompt's own answer. `own` is another one, where it is known.

    Raises:
        ValueError: for inputs that are not tokens, and prompts without an answer of their own or
            with one of several tokens.
    """
    if isinstance(prompts, Contrasted):
        contrast = contrast_of(network, prompts)
        base, answer, other = contrast.base, contrast.own, contrast.label
        # The first pair of each base, in the order of the pairs.
        first = np.unique(prompt_numbers(base), return_index=True)[1]
        rows = torch.from_numpy(np.sort(first))
        clusters = contrast.clusters[rows.numpy()]
    else:
        base, answer, other = prompts_of(prompts), prompts.get("answer"), None
        rows = torch.arange(0 if answer is None else len(answer))
        clusters = rows.numpy()

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
    is_token = torch.arange(ids.shape[1]) < batch.lengths.cpu().unsqueeze(1)
    clean = {
        "input_ids": ids,
        "attention_mask": is_token.long(),
        "positions": {role: index.cpu() for role, index in batch.positions.items()},
    }
    clean = batch_rows(clean, rows)
    if other is not None:
        other = other[rows]
    return Contrast(network, clean, clean, answer[rows], other, clusters)


def corruption(clean: Contrast, subject: Tensor, scale: float, seed: int, draw: int) -> Corruption:
    """Noise at the subject: h + scale·ε with ε ~ N(0, 1).

    ε depends on the seed, the draw and the prompt's tokens alone.

    subject: LongTensor[prompt, position], −100 padded.
    """
    model = IntervenedModel(clean.network, {"noise": Edit(EMBEDDING, AdditionIntervention())})
    site = resolve(clean.module, EMBEDDING)
    embedding: Any = site.module
    width = embedding.weight.shape[1]
    lengths = clean.base["attention_mask"].sum(1).tolist()
    values: dict[tuple[int, ...], Tensor] = {}
    for ids, n, columns in zip(clean.base["input_ids"].tolist(), lengths, subject, strict=True):
        prompt = tuple(ids[:n])
        columns = columns[columns != IGNORED]
        # The prompt's tokens are part of the seed, so neither its row nor its batch matters.
        generator = np.random.default_rng([seed, draw, *prompt])
        noise = torch.zeros(n, width, dtype=torch.float64)
        noise[columns] = torch.from_numpy(scale * generator.standard_normal((len(columns), width)))
        values[prompt] = noise.to(embedding.weight.dtype).to(site.device)
    return Corruption(model, values)


def subject_deviation(clean: Contrast, subject: Tensor) -> float:
    """σ: the standard deviation of all entries of the embeddings of the subjects' tokens.

    It is of the embedding's output: some networks scale the weights of their embeddings.

    subject: LongTensor[prompt, position], −100 padded.
    """
    with_padding = clean.base["input_ids"].gather(1, subject.clamp(min=0))
    tokens = with_padding[subject != IGNORED]
    site = resolve(clean.module, EMBEDDING)
    with torch.no_grad():
        embedded = widened(site.module(tokens.to(site.device)))
    return float(embedded.std(correction=0))
