"""A network that runs elsewhere: on nnsight's engine, on this machine or on a server.

What is studied is the network without its weights. Its forward sends the inputs away, and runs the
hooks on its modules on this machine, on what the engine has read there. What a hook gives in place
of an activation is sent along from then on. So only tensors travel.
"""

from contextlib import suppress
from copy import copy, deepcopy
from functools import partial, update_wrapper
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import CausalLMOutput

from iit.network import load
from iit.network.components import blocks_of
from iit.network.fingerprint import fingerprint
from iit.network.structure import few_tokens

LOGITS = ("", "output")
OPTIONS = {"revision", "token", "kind", "dtype", "device", "attention"}


def load_network(
    name: str, *, remote: bool | str = False, weights: bool = True, **options: Any
) -> Any:
    """Load a language model that runs on nnsight's engine, frozen and in eval mode.

    Arguments:
        name, weights: as in `iit.network.load.Loading`.
        remote: True runs it on NDIF, and an address on another server of its kind. False runs it on
            this machine; "local", too, with all that a server would get packed and unpacked.
        options: `OPTIONS`, as in `Loading`. A server has a dtype and a device of its own.

    Raises:
        ModuleNotFoundError: nnsight is not installed.
        ValueError: NDIF without a key; other options; a network without tokens; a folder for a
            server; and as `Loading` does.
    """
    if find_spec("nnsight") is None:
        raise ModuleNotFoundError(
            "network=remote needs the package nnsight, which is not installed. Run: pip install "
            "'iit[remote]'"
        )
    from nnsight import CONFIG  # pyright: ignore
    from nnsight.modeling.transformers import TransformersModel  # pyright: ignore

    if remote not in (True, False, "local") and not str(remote).startswith("http"):
        raise ValueError(f"remote={remote!r} is none of true, false, local and https://…")
    if remote is True and not CONFIG.API.APIKEY:
        raise ValueError(
            "network.remote=true runs on NDIF, which wants a key. Set the variable NDIF_API_KEY "
            "or call nnsight.CONFIG.set_default_api_key. With network.remote=false it runs here."
        )
    if further := options.keys() - OPTIONS:
        raise ValueError(f"network=remote takes no {further}.")
    network: Any = load.load_network(name, weights=False, **options)
    if network.tokenizer is None:
        raise ValueError(f"{name!r} is no language model: take network=hub.")
    if not weights:
        return network
    skeleton = network.model
    model = deepcopy(skeleton)
    # As accelerate says it: else the pipeline inside the engine moves its network.
    model.hf_device_map = {"": "meta"}
    if remote in (False, "local"):
        network = load.load_network(name, **options)
        model = network.model
    elif Path(skeleton.name_or_path).is_dir():
        raise ValueError(f"{name!r} is a folder; a server runs networks of the hub.")
    # The engine tells its tokenizer to pad on the left.
    engine = TransformersModel(model, tokenizer=copy(network.tokenizer), revision=network.revision)
    skeleton.forward = _Elsewhere(skeleton, engine, remote)
    network.model = skeleton
    return network


class _Elsewhere:
    """The forward of a network whose weights are elsewhere.

    A place is (path of a module, "inputs" or "output"); nnsight names the sides so.

    Arguments:
        model: the network without weights.
        engine: the same network in nnsight.
        remote: as `load_network` takes it.
    """

    def __init__(self, model: Any, engine: Any, remote: bool | str):
        update_wrapper(self, model.forward)
        self._model, self._engine, self._remote = model, engine, remote
        # A family that no table lists is surveyed while its modules still run.
        with suppress(ValueError):
            blocks_of(model)

        # All places, in the order of a run. Some mixtures run without values in this dtype alone.
        self._places = places = []
        probe = deepcopy(model).bfloat16()
        for path, module in probe.named_modules():
            module.register_forward_pre_hook(lambda *_, at=path: places.append((at, "inputs")))
            module.register_forward_hook(lambda *_, at=path: places.append((at, "output")))
        with FakeTensorMode(allow_non_fake_inputs=True):
            probe(**few_tokens(probe))
        for module in model.modules():
            module.forward = _refuse

    def fingerprint(self) -> str:
        """That of the weights; of weights on a server, where they are from."""
        engine = self._engine
        if engine.device.type == "meta":
            return f"{engine.repo_id}@{engine.revision or 'main'} on a server"
        return fingerprint(engine._module)

    def __call__(self, **inputs: Any) -> CausalLMOutput:
        refused = inputs.keys() & {"past_key_values", "labels", "output_hidden_states"}
        if refused or any(parameter.requires_grad for parameter in self._model.parameters()):
            raise ValueError(
                "A network that runs elsewhere gives logits, and is not trained: no IIT, no "
                f"generate, no {refused or 'gradients of weights'}. Take network=hub."
            )
        hooked = [place for place in self._places if place[0] and self._hooks(*place)]
        reads, writes = {}, {}
        for number, place in enumerate(hooked):
            if place not in reads:
                reads = self._run(inputs, writes, hooked[number:])
            new = self._hooks(*place)(reads[place])
            if new is not reads[place]:
                writes[place] = new
                # What lies behind was read without this.
                reads = {}
        return CausalLMOutput(logits=self._run(inputs, writes, [LOGITS])[LOGITS])

    def _hooks(self, path: str, side: str) -> Any:
        """A module that has the hooks of a place, and does nothing else; {} without hooks."""
        attributes = vars(self._model.get_submodule(path))
        if attributes["_forward_hooks_always_called"]:
            raise ValueError(
                f"{path} runs elsewhere: attention_weight and router_output need network=hub."
            )
        kind = "_forward_pre_hooks" if side == "inputs" else "_forward_hooks"
        module = nn.Identity()
        for name in (kind, f"{kind}_with_kwargs"):
            setattr(module, name, attributes[name])
        return attributes[kind] and module

    def _run(self, inputs: Any, writes: Any, wanted: Any) -> Any:
        """{place: the first tensor of floats there}, in a run with others written.

        Arguments:
            inputs: the network's own.
            writes: {place: what stands there instead}.
            wanted: places, in the order of a run, none of them among `writes`.
        """
        trace = partial(self._trace, inputs, dict(writes), wanted)
        return dict(zip(wanted, _Run.apply(trace, *writes.values()), strict=True))

    def _trace(self, inputs: Any, writes: Any, wanted: Any, gradients: Any = ()) -> Any:
        """What is read at the wanted places; or, given its gradients, those of what is written."""
        from nnsight import save  # pyright: ignore

        envoys = {envoy.path: envoy for envoy in self._engine.modules()}
        steps = []
        for place in self._places:
            if place in wanted or place in writes:
                path, side = place
                steps.append((envoys[f"model.{path}".strip(".")], side, writes.get(place)))
        # A server has no code of ours. In the block are tensors, and functions of torch.
        with self._engine.trace(**inputs, remote=self._remote):
            reads, leaves = [], []
            for envoy, side, written in steps:
                value = getattr(envoy, side)
                value = getattr(value, "logits", value)
                tensors = filter(torch.is_tensor, pytree.tree_leaves(value))
                old = next(filter(torch.is_floating_point, tensors))
                if written is None:
                    reads.append(old.cpu().clone())
                else:
                    leaves.append(written.detach().requires_grad_(bool(gradients)))
                    there = leaves[-1].to(old.device)
                    # It has done its work before the loop goes on.
                    swap = lambda x: there if x is old else x  # noqa: B023, E731
                    setattr(envoy, side, pytree.tree_map(swap, value))
            if gradients:
                total: Any = sum((a * b).sum() for a, b in zip(reads, gradients, strict=True))
                reads = torch.autograd.grad(total, leaves, materialize_grads=True)
            results = save(tuple(reads))
        # The engine puts it here when the block has run.
        return results  # noqa: RET504


class _Run(torch.autograd.Function):
    """A run elsewhere. Its backward runs the network again."""

    @staticmethod
    def forward(ctx: Any, trace: Any, *_: Any) -> Any:
        ctx.trace = trace
        return trace()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # As it is where the graph of a backward is kept.
        if torch.is_grad_enabled():
            raise NotImplementedError("A run elsewhere has no gradients of its gradients.")
        with torch.enable_grad():
            return None, *ctx.trace(gradients)


def _refuse(*_: Any, **__: Any) -> None:
    raise ValueError("A part of a network that runs elsewhere has no weights: take network=hub.")
