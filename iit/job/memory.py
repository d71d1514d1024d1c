"""How much memory a job will need, counted on a network that need not have weights."""

from contextlib import ExitStack
from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers.cache_utils import DynamicCache

from iit.intervened import IntervenedModel
from iit.intervened.edit import sites_of
from iit.network import Network
from iit.network.answering import head_at, logits_of
from iit.site import Site, resolve


def demand(
    cfg: DictConfig,
    network: Network,
    models: list[IntervenedModel],
    batches: list[dict[str, Any]],
    n_tokens: int,
) -> dict[str, int]:
    """The bytes that a job will need, by what needs them: weights, store, training.

    The network runs one batch. On the meta device nothing is computed.

    Arguments:
        network: the network, with or without weights.
        models: what the job edits.
        batches: the job's pairs. Without any, only the weights are counted.
        n_tokens: of all distinct prompts together.
    """
    module = network.model
    weights = [*module.parameters(), *module.buffers()]
    memory = {"weights": n_bytes(weights)}
    if not batches:
        return memory
    inputs = {}
    for name in batches[0]["base"].keys() - {"attention_mask", "positions", "answer"}:
        prompts = batches[0]["base"][name][: cfg.trainer.batch_size]
        inputs[name] = prompts.to(weights[0].device)

    trained = [p for model in models for p in model.parameters() if p.requires_grad]
    blocks = [model.first_block or 0 for model in models]
    # Runs resume at this block, and the backward pass ends there. At 0 the whole network runs.
    first = min(filter(None, blocks), default=0)
    if cfg.job._target_ == "iit.job.train_network":
        first = 0
        trained += module.parameters()
    module.requires_grad_(not first)
    cache: Any = DynamicCache()
    kept: list[Tensor] = []
    with ExitStack() as stack:
        if first:
            site = resolve(module, Site("block_output", layer=first - 1))
            start = site.attach(lambda hidden: hidden.detach().requires_grad_())
            stack.callback(start.remove)
            stack.enter_context(head_at(module, inputs["input_ids"][:, :1]))
            inputs |= {"past_key_values": cache, "use_cache": True}
        # The hook returns the tensor that it has noted.
        stack.enter_context(saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t))
        logits: Any = logits_of(module(**inputs))
        # As the loss does.
        logits.float().log_softmax(-1)

    if first:
        # The residual stream in each edited layer, of bases and sources.
        layers = {site.layer for model in models for site in sites_of(model.edits.values())}
        width = resolve(module, Site("block_output", layer=0)).width or 0
        # Keys and values of the blocks that run again.
        cached = sum(block.keys.nbytes + block.values.nbytes for block in cache.layers[first:])
        cached //= inputs["input_ids"].numel()
        memory["store"] = n_tokens * (len(layers) * width * network.dtype.itemsize + cached)
    if trained:
        # Cells that resume at one block are trained side by side.
        n_runs = max(map(blocks.count, blocks))
        memory["training"] = n_runs * (n_bytes(weights + kept) - memory["weights"])
        # The gradient, Adam's two moments, and the copy of the best epoch.
        memory["training"] += 4 * n_bytes(trained)
    return memory


def n_bytes(tensors: list[Any]) -> int:
    """The bytes of tensors; those that share memory count once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
