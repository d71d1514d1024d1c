"""Contrasts: pairs of runs that a map compares.

A contrast has bases, sources, and the answers that tell them apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from iit.batch import IGNORED, Batch, at_rows
from iit.data import EncodedPairs, Pairs
from iit.intervened import IntervenedModel
from iit.intervened.positions import columns
from iit.network import LanguageModel, Network
from iit.patching.metric import LIGHT, METRICS, Answers, Figures, Metric, blank, record
from iit.site import Site

AnyNetwork = Network | nn.Module
"""A `LanguageModel`, a `Classifier`, or any module."""
EncodedBatch = Mapping[str, Any]
"""What `encode` gives: inputs of a network, and where used `positions` and `answer`."""


@final
@dataclass(frozen=True, eq=False)
class Contrast:
    """Bases and sources, row by row, with the answer of each.

    network: runs both.
    base, source: batches as `encode` gives them (inputs, `positions`), without an `answer`.
    label: LongTensor[n, n_answer], −100 padded, the answer that moves the base towards the source.
    own: LongTensor[n, n_answer], −100 padded, the base's own answer; None where it is not known.
    clusters: int[n], which pairs share a base, or a case where the pairs know it.
    interchanged: whether labels are of interchanges: a source by itself may answer otherwise.

    Example:
        >>> lm = ...  # doctest: +SKIP
        >>> base = lm.encode(clean, answers=[" John"])  # doctest: +SKIP
        >>> source = lm.encode(corrupt, answers=[" Mary"])  # doctest: +SKIP
        >>> Contrast.of_batches(lm, base, source)  # doctest: +SKIP
    """

    network: AnyNetwork
    base: EncodedBatch
    source: EncodedBatch
    label: Tensor
    own: Tensor | None
    clusters: np.ndarray
    interchanged: bool = False

    @classmethod
    def of_batches(
        cls, network: AnyNetwork, base: EncodedBatch, source: EncodedBatch
    ) -> "Contrast":
        """Two batches of equal size, each with its own `answer`: the source's is the label.

        Raises:
            ValueError: for batches without an answer, without rows or of different sizes.
        """
        for name, batch in (("base", base), ("source", source)):
            if batch.get("answer") is None:
                raise ValueError(
                    f"The {name} has no `answer`; encode it with `answers=`, each prompt's own."
                )
        base_answer, label = base["answer"], source["answer"]
        if not 0 < len(base_answer) == len(label):
            raise ValueError(
                f"{len(base_answer)} bases and {len(label)} sources: they must be paired, and at "
                "least one."
            )
        prompts = prompts_of(base), prompts_of(source)
        return cls(network, *prompts, label, base_answer, prompt_numbers(base))

    @classmethod
    def of(
        cls,
        network: AnyNetwork,
        pairs: Pairs | EncodedPairs,
        *,
        split: str = "validation",
        variable: str | None = None,
        every: bool = False,
    ) -> "Contrast":
        """The changing pairs of a split that interchange the variable.

        Arguments:
            split: of `Pairs`; encoded pairs are of one split already.
            variable: whose source is read; may be left out where the pairs are of one variable.
            every: take all pairs, in their order, whatever they change and interchange.

        Raises:
            ValueError: for an unknown variable, pairs that the network cannot encode, and where no
                pair is left.
        """
        if isinstance(pairs, Pairs):
            if not isinstance(network, Network):
                raise ValueError(
                    "Pairs are encoded by a LanguageModel or a Classifier; "
                    f"{type(network).__name__} is neither."
                )
            pairs = EncodedPairs(pairs.split(split), pairs.variables, network)

        variables = list(pairs.variables)
        if variable is None and len(variables) == 1:
            variable = variables[0]
        if variable not in variables:
            raise ValueError(
                f"variable={variable!r}: say whose source is patched in. The pairs are of the "
                f"variables {variables}, not {variable!r}."
            )
        swapped = np.array([variable in names for names in pairs.interchanged])
        taken_rows = swapped & pairs.changing.numpy() | every
        if not taken_rows.any():
            raise ValueError(f"No changing pair interchanges {variable!r}.")
        batch = pairs.batch(taken_rows.nonzero()[0].tolist())
        prompts = prompts_of(batch["base"]), prompts_of(batch["sources"][variable])
        label, base_answer = batch["base"]["answer"], batch.get("base_answer")
        clusters = pairs.clusters[taken_rows]
        return cls(network, *prompts, label, base_answer, clusters, interchanged=True)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def module(self) -> nn.Module:
        """The network as a module."""
        return module_of(self.network)

    def answers(self, rows: Tensor, unedited: Tensor | None) -> Answers:
        """The answers that metrics of these rows read. unedited: the logits of their bases."""
        device = "cpu" if unedited is None else unedited.device
        base_answer = None if self.own is None else self.own[rows].to(device)
        return Answers(self.label[rows].to(device), base_answer, unedited)

    def unedited(
        self,
        batch: EncodedBatch,
        metrics: Mapping[str, Metric],
        base_logits: Tensor | None = None,
    ) -> tuple[Figures, Tensor | None]:
        """The figures of a batch's runs without an edit, {metric: float[pair]}, and their logits.

        The logits are None where no metric asks for those of the bases.
        """
        model = IntervenedModel(self.network, {})
        light = all(metric in LIGHT for metric in metrics.values())
        values = blank(metrics, len(self))
        parts = []
        for rows in torch.arange(len(self)).split(64):
            with torch.no_grad():
                logits = model.answer_logits(batch_rows(batch, rows, self.label)).cpu()
            # Without base logits, either the batch holds the bases or no metric reads them.
            plain = logits if base_logits is None else base_logits[rows]
            record(values, rows.numpy(), metrics, logits, self.answers(rows, plain))
            if not light:
                parts.append(logits)
        return values, None if light else torch.cat(parts)

    def swapped(self) -> "Contrast":
        """Sources as bases, for denoising.

        Raises:
            ValueError: where the base's own answer is not known, and for sources of interchanges
                that do not give the label by themselves.
        """
        if self.own is None:
            raise ValueError(
                "Denoising needs each base's own answer (`base_answer`): it is what the sources "
                "are moved towards."
            )
        if self.interchanged:
            right, _ = self.unedited(self.source, {"iia": METRICS["iia"]})
            wrong = len(self) - int(right["iia"].sum())
            if wrong:
                raise ValueError(
                    f"Denoising: {wrong} of {len(self)} sources do not give the label by "
                    "themselves, so that bases cannot restore it. Take sources that are the base "
                    "but for what tells the answers apart (one of the task's counterfactuals, as "
                    "data.pairs=s2_io_flip of IOI), or direction='noising'."
                )
        # Each side's answer is what the other side is moved towards.
        return replace(self, base=self.source, source=self.base, label=self.own, own=self.label)

    def tokens(self, places: Sequence[Any]) -> dict[Any, str]:
        """{role or token index: its text in the first base that has it}, for axes.

        Places that are neither are left out. There is nothing for networks that are no language
        models.
        """
        if not isinstance(self.network, LanguageModel):
            return {}
        tokenizer: Any = self.network.tokenizer
        roles = self.base.get("positions") or {}
        texts: dict[Any, str] = {}
        lengths = self.base["attention_mask"].sum(1).tolist()
        for position, (row, n) in product(dict.fromkeys(places), enumerate(lengths)):
            index = []
            if isinstance(position, int) and -n <= position < n:
                # Negative indices count from the prompt's end.
                index = [position % n]
            elif position in roles:
                index = [column for column in roles[position][row].tolist() if column != IGNORED]
            if index and position not in texts:
                texts[position] = tokenizer.decode(self.base["input_ids"][row, index].tolist())
        return texts


Contrasted = Pairs | EncodedPairs | Contrast
"""What a map is made of.

Pairs stand for their changing pairs of the validation split, which interchange their one variable.
"""


def contrast_of(network: AnyNetwork, pairs: Contrasted, direction: str = "noising") -> Contrast:
    """The contrast that a map is made of.

    Arguments:
        direction: "noising" runs the base with the source's activations, "denoising" the source
            with the base's.

    Raises:
        ValueError: for another direction, a contrast of another network, and as `Contrast.of` and
            `swapped` do.
    """
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction={direction!r} is none of noising, denoising.")
    contrast = pairs if isinstance(pairs, Contrast) else Contrast.of(network, pairs)
    if contrast.module is not module_of(network):
        raise ValueError("The contrast was made with another network than the one to be mapped.")
    return contrast if direction == "noising" else contrast.swapped()


def module_of(network: AnyNetwork) -> nn.Module:
    """The network as a module."""
    return network.model if isinstance(network, Network) else network


def prompt_numbers(batch: EncodedBatch) -> np.ndarray:
    """int[n], equal for equal prompts of a batch: those that are alike in all inputs."""
    inputs = []
    for value in prompts_of(batch).values():
        if isinstance(value, Tensor):
            inputs.append(value.flatten(1).cpu().double())
    return torch.unique(torch.cat(inputs, 1), dim=0, return_inverse=True)[1].numpy()


def column_index(site: Site, batch: Batch) -> Int[Tensor, "batch n"]:
    """The columns of a site's position in a batch, −100 where a prompt has fewer."""
    index = columns(site, batch).index
    if index is None:
        index = torch.arange(batch.tokens.shape[1])
    # An index that all prompts share, [n], becomes [batch, n].
    return torch.as_tensor(index).cpu().expand(batch.size, -1)


def prompts_of(batch: EncodedBatch) -> dict[str, Any]:
    """The batch without its answer."""
    return {key: value for key, value in batch.items() if key != "answer"}


def batch_rows(batch: EncodedBatch, rows: Tensor, answer: Tensor | None = None) -> dict[str, Any]:
    """Some rows of a batch, cut to the longest of them.

    answer: of the whole batch; its rows take the place of the batch's own answer.
    """
    part = at_rows(prompts_of(batch), rows)
    mask = part.get("attention_mask")
    if mask is not None and (mask.diff(dim=1) <= 0).all():  # padded on the right
        longest = int(mask.sum(1).max())
        # Only columns on the right are cut, so positions stay what they are.
        for key in {"input_ids", "inputs_embeds", "attention_mask"} & set(part):
            part[key] = part[key][:, :longest]
    if answer is not None:
        part["answer"] = answer[rows]
    return part
