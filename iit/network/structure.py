"""Where the parts of a transformer are, read off one run: for families that no table lists.

Names say which module has which role, and the run says which of them were called, in which order,
and which tensor one hands to the next. `iit.network.survey` then checks what was read off.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from iit.network.dimensions import device_of, width
from iit.network.hooks import first_float
from iit.network.location import BlockParts
from iit.network.probe import Call

N_TOKENS = 6
Calls = Mapping[str, Call]
"""{path of a module: its call}"""

# The last part of a module's path → its role.
_QUERY = re.compile(r"q|wq|query|(q|q_b|query)_proj|q_lin|project_q", re.IGNORECASE)
_KEY = re.compile(r"k|wk|key|(k|key)_proj|k_lin|project_k", re.IGNORECASE)
_VALUE = re.compile(r"v|wv|value|(v|value)_proj|v_lin|project_v", re.IGNORECASE)
_FUSED = re.compile(r"query_key_value|c_attn|w?qkv(_proj|_lin)?", re.IGNORECASE)
_MLP = re.compile(r".*(mlp|ffn?|feed_?forward|moe).*|mixer", re.IGNORECASE)
_ROUTER = re.compile(r"gate|router", re.IGNORECASE)
_EXPERTS = re.compile(r".*experts?", re.IGNORECASE)


@dataclass(frozen=True)
class Structure:
    """What one run shows of a transformer.

    Arguments:
        blocks: the path of the list of blocks.
        calls: the one call of each block.
        parts: of each block.
        embedding, norm: paths of the token embedding, and of the norm behind the last block.
    """

    blocks: str
    calls: tuple[Call, ...]
    parts: tuple[BlockParts, ...]
    embedding: str | None
    norm: str | None


def structure_of(transformer: Any) -> Structure:
    """Run a few tokens, and read off where the parts are.

    Raises ValueError where the run fails, or where no list has modules that each run once.
    """
    try:
        calls = _calls(transformer)
    except Exception as error:  # whatever a network raises
        message = str(error).partition("\n")[0]
        raise ValueError(
            f"a run of a few tokens raises {type(error).__name__}: {message}"
        ) from error
    root = transformer.get_encoder() if transformer.config.is_encoder_decoder else transformer
    names = {id(module): name for name, module in transformer.named_modules()}
    blocks = _blocks(root, calls, names)
    path = names[id(blocks)]
    block_calls = tuple(calls[f"{path}.{number}"] for number in range(len(blocks)))
    last = tensor_key(block_calls[-1].after)
    norm = None
    for name, call in calls.items():
        # The norm receives what the last block gives, and keeps its shape. The head widens it.
        is_behind = tensor_key(call.before) == last and not _inside(name, path)
        if is_behind and name and _is_norm(call):
            norm = name
            break
    embedding = names.get(id(transformer.get_input_embeddings()))
    parts = tuple(_parts(f"{path}.{number}.", calls) for number in range(len(blocks)))
    return Structure(path, block_calls, parts, embedding if embedding in calls else None, norm)


def tensor_key(tensor: Tensor | None) -> Any:
    """What two tensors share exactly where they are the same memory; views count as the same."""
    if tensor is None:
        return None
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()


def _calls(transformer: Any) -> Calls:
    """{path: its call} for the modules that one run calls exactly once, in the order of their ends.

    The tensors stay alive as long as the calls, so that no memory is used twice.
    """
    calls: defaultdict[str, list[Call]] = defaultdict(list)

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        before, after = first_float((args, kwargs)), first_float(result)
        calls[name].append(Call(module, args, kwargs, result, before, after))

    with ExitStack() as stack, evaluating(transformer):
        for name, module in transformer.named_modules():
            handle = module.register_forward_hook(partial(record, name), with_kwargs=True)
            stack.callback(handle.remove)
        transformer(**few_tokens(transformer))
    return {name: of_module[0] for name, of_module in calls.items() if len(of_module) == 1}


@contextmanager
def evaluating(transformer: nn.Module) -> Iterator[None]:
    """Without gradients and dropout, and without a trace in the random numbers."""
    training = [module for module in transformer.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module in training:
            module.training = True


def few_tokens(transformer: Any) -> dict[str, Any]:
    """A few tokens that mean nothing special, and what the network's forward needs beside them."""
    parameters = signature(transformer.forward).parameters
    if "input_ids" not in parameters:
        raise ValueError("its forward takes no `input_ids`")
    config = transformer.config.get_text_config()
    special = set()
    for name, value in {**transformer.config.to_dict(), **config.to_dict()}.items():
        if "token" in name:
            special |= set(value) if isinstance(value, list) else {value}
    embedding = transformer.get_input_embeddings()
    n_tokens = getattr(embedding, "num_embeddings", None) or config.vocab_size
    plain = [token for token in range(7, min(n_tokens, 4096)) if token not in special]
    row = [plain[(number * 37 + 5) % len(plain)] for number in range(N_TOKENS)]
    ids = torch.tensor([row], device=device_of(embedding))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if transformer.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return {name: value for name, value in inputs.items() if name in parameters}


def _blocks(root: nn.Module, calls: Calls, names: Mapping[int, str]) -> nn.ModuleList:
    """The list of modules that were all called, with the most weights."""
    lists = []
    for module in root.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            path = names[id(module)]
            if all(f"{path}.{number}" in calls for number in range(len(module))):
                lists.append(module)
    if not lists:
        raise ValueError("it has no list of blocks of which each runs once in a forward")
    return max(lists, key=lambda blocks: sum(map(Tensor.numel, blocks.parameters())))


def _is_norm(call: Call) -> bool:
    """Whether a module may be a norm: no matrix, and the shape stays."""
    if call.before is None or call.after is None or call.before.shape != call.after.shape:
        return False
    # Dropout gives back what it receives.
    if tensor_key(call.before) == tensor_key(call.after):
        return False
    return not _has_matrix(call.module)


def _is_linear(call: Call) -> bool:
    """Whether a module is a projection (a matrix, packed or plain)."""
    return width(call.module, "input") is not None and width(call.module, "output") is not None


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _parts(root: str, calls: Calls) -> BlockParts:
    """The parts of one block.

    Arguments:
        root: the block's path, with a dot behind it.
    """
    within = {
        name.removeprefix(root): call for name, call in calls.items() if name.startswith(root)
    }
    attention, qkv, out, area = _attention(within)
    rest = {name: call for name, call in within.items() if not _inside(name, area)}
    mlp, mlp_input, mlp_out, is_mixture = _mlp(rest)
    router = None
    if is_mixture:
        for name, call in rest.items():
            weight = getattr(call.module, "weight", None)
            on_way = any(map(_ROUTER.fullmatch, name.split(".")))
            if _inside(name, mlp) and on_way and weight is not None and weight.ndim == 2:
                router = name
                break
    writes = {}
    if out is not None:
        writes["attention_write"] = _downstream(out, within)
    if mlp_out is not None:
        writes["mlp_write"] = _downstream(mlp_out, within)
    for name, call in rest.items():
        # Another mixer writes, too. A flat MLP begins at one module and ends at another.
        is_part = name in map(_top, (area or "", mlp_input or "", mlp_out or ""))
        if "." not in name and not is_part and _has_matrix(call.module):
            writes[name] = _downstream(name, within)
    received = set()
    for name, call in within.items():
        if name != attention and _inside(name, attention) and _is_linear(call):
            received.add(tensor_key(call.before))
    is_direct = attention in within and tensor_key(within[attention].before) in received
    return BlockParts(
        attention, qkv, out, mlp_input, mlp_out, router, is_mixture, writes, is_direct=is_direct
    )


def _top(path: str) -> str:
    return path.partition(".")[0]


def _inside(path: str, area: str | None) -> bool:
    return area is not None and (path == area or path.startswith(f"{area}."))


def _attention(
    calls: Calls,
) -> tuple[str | None, tuple[str, ...], str | None, str | None]:
    """(attention, its projections, the output projection, the module around all of them)."""
    for name in sorted(calls, key=lambda name: name.count(".")):
        attention, _, last = name.rpartition(".")
        siblings = {}
        for role in (_QUERY, _KEY, _VALUE):
            for other in calls:
                if _parent(other) == attention and role.fullmatch(other.rpartition(".")[2]):
                    siblings[role] = other
        is_query = siblings.get(_QUERY) == name
        # With latent keys and values the query projection stands alone.
        is_latent = is_query and any("kv_" in other for other in calls if _inside(other, attention))
        if is_query and len(siblings) == 3:
            qkv = tuple(siblings.values())
        elif is_latent or _FUSED.fullmatch(last):
            qkv = (name,)
        else:
            continue
        # The output projection is the last one that runs in the smallest module around.
        area, order = attention, list(calls)
        while area:
            later = order[max(map(order.index, qkv)) + 1 :]
            projections = [
                other for other in later if _inside(other, area) and _is_linear(calls[other])
            ]
            if projections:
                return attention, qkv, projections[-1], area
            area = _parent(area)
    return None, (), None, None


def _mlp(calls: Calls) -> tuple[str | None, str | None, str | None, bool]:
    """(the module, the module that receives the input, the output projection, is a mixture)."""
    tops = [name for name in calls if "." not in name and _has_matrix(calls[name].module)]
    mlp = next(filter(_MLP.fullmatch, tops), None)
    if mlp is not None:
        for name, _ in calls[mlp].module.named_modules():
            if any(map(_EXPERTS.fullmatch, name.split("."))):
                return mlp, mlp, mlp, True
    linear = []
    for name, call in calls.items():
        if _is_linear(call) and _inside(name, mlp or _top(name)):
            linear.append(name)
    if not linear:
        return None, None, None, False
    # The outermost module that receives the same tensor as the first projection.
    received, path = linear[0], linear[0]
    while path:
        if path in calls and tensor_key(calls[path].before) == tensor_key(calls[linear[0]].before):
            received = path
        path = _parent(path)
    return mlp, received, linear[-1], False


def _downstream(path: str, calls: Calls) -> tuple[str, ...]:
    """The module, those that receive what it gives, and so on, and those around it."""
    paths, written = [path], calls[path].after
    for name, call in calls.items():
        keys = {tensor_key(calls[other].after) for other in paths}
        is_behind = tensor_key(call.before) in keys or _inside(path, name)
        if name in paths or not is_behind or call.after is None or written is None:
            continue
        if call.after.numel() == written.numel():
            paths.append(name)
    return tuple(paths)
