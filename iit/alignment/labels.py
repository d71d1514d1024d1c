"""Which answers a network can give."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from iit.batch import IGNORED, at_rows
from iit.data import EncodedPairs
from iit.intervened import IntervenedModel
from iit.network import Network
from iit.network.dimensions import width


def check_labels(network: Network, encoded: EncodedPairs, split: str | None = None) -> None:
    """Raises ValueError for a label, or a base's own answer, that the network cannot give.

    It can give its classes, or the tokens in its head.

    Arguments:
        split: the pairs' split, for the message.
    """
    batch = encoded.batch(range(len(encoded)))
    n = n_answers(network, batch["base"])
    what = "classes" if network.classifies else "tokens"
    label = batch["base"]["answer"]
    for name, answer in {"label": label, "base_answer": batch.get("base_answer", label)}.items():
        # −100 is padding, and no answer.
        is_wrong = ((answer < 0) & (answer != IGNORED)) | (answer >= n)
        if bool(is_wrong.any()):
            pair = int(is_wrong.nonzero()[0, 0])
            where = "" if split is None else f" of the {split} split"
            raise ValueError(
                f"{name}: {int(answer[is_wrong][0])} (pair {pair}{where}) is none of the {n} "
                f"{what} that {network.name} answers with, 0 to {n - 1}. Change the {name}s, or "
                f"take a network with as many {what}."
            )


def n_answers(network: Network, inputs: Mapping[str, Any]) -> int:
    """How many classes, or tokens, a network gives logits for.

    A network that does not say it is run on the first of these inputs.
    """
    if isinstance(network.model, PreTrainedModel) and not network.classifies:
        head: Any = network.model.get_output_embeddings()
        return width(head, "output") or network.model.config.vocab_size
    with torch.no_grad():
        first = at_rows(inputs, slice(1))
        return IntervenedModel(network, {}).answer_logits(first).shape[-1]
