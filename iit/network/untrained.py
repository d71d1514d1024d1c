"""A network of the same architecture, with the weights that it would have before any training."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iit.batch import behind_bridge
from iit.network.classifier import Classifier, Network
from iit.network.dimensions import is_apart
from iit.network.language_model import LanguageModel


def untrained(network: Network, seed: int = 0, *, keep_ends: bool = False) -> Network:
    """A network of the same architecture with freshly drawn weights, frozen and in eval mode.

    The given network is not touched. A transformers model is made again from its config. In other
    networks every module with parameters of its own draws them anew (`reset_parameters`).

    Arguments:
        seed: of the weights.
        keep_ends: whether a language model keeps its embedding and its head, so that only what lies
            between is drawn.

    Raises:
        ValueError: a module has parameters and no `reset_parameters`; the network lacks an end
            that it should keep; or what should be kept or copied is offloaded, or runs elsewhere.
    """
    is_remade = isinstance(behind_bridge(network.model), PreTrainedModel)
    if is_apart(network.model) and (keep_ends or not is_remade):
        raise ValueError(
            f"{network.name} is dispatched, offloaded or run elsewhere: only a transformers "
            "model without keep_ends is made again beside it. Load it on one device."
        )
    # The global random generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A bridge's twin is a transformers model: components are the same.
        model: Any = behind_bridge(network.model)
        model = type(model)(deepcopy(model.config)) if is_remade else _reset(model)
    model.to(network.device, network.dtype)
    name = f"{network.name}, untrained"
    if keep_ends:
        name += " between its embedding and its head"
        for end in ("get_input_embeddings", "get_output_embeddings"):
            trained: Any = getattr(network.model, end, lambda: None)()
            if trained is None:
                raise ValueError(
                    f"keep_ends: {network.name} has no {end.removeprefix('get_')} to keep."
                )
            getattr(model, end)().load_state_dict(trained.state_dict())
    if isinstance(network, Classifier):
        return Classifier(model, name)
    return LanguageModel(model, network.tokenizer, name, processor=network.processor)


def _reset(model: nn.Module) -> nn.Module:
    fresh = deepcopy(model)
    for name, module in fresh.named_modules():
        # Only parameters of the module itself; those of its submodules come in their turn.
        if not list(module.parameters(recurse=False)):
            continue
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is None:
            raise ValueError(
                f"The module {name or type(module).__name__!r} ({type(module).__name__}) has "
                "parameters and no `reset_parameters`, so an untrained twin of this network cannot "
                "be drawn. Give it that method, or leave this control out."
            )
        reset()
    return fresh
