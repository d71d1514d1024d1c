"""Resuming a run at the first edited block: everything below it is the same for every edit, and is not run again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from iit.intervened.edit import Edit
from iit.network.components import blocks_of
from iit.site import Site


def resume_site(network: nn.Module, edits: Iterable[Edit]) -> Site | None:
    """The residual stream that a run of these edits can start from; None where it has to start at the tokens.

    That is the output of the last block no edit touches inside. Only sites of causal families say which block they are in.
    """
    first = []
    for edit in edits:
        for site in edit.sites:
            if site.layer is None:
                return None
            inside = site.component != "block_output" or edit.intervention.skips
            first.append(site.layer if inside else site.layer + 1)
    if min(first) == 0 or not blocks_of(network)[0].causal:
        return None
    return Site("block_output", layer=min(first) - 1)


@contextmanager
def resumed(network: nn.Module, site: Site, hidden: Tensor) -> Iterator[None]:
    """Within the context the blocks up to `site` are passed over, and the last of them returns `hidden`.

    hidden: Tensor[batch, seq, width], the output of block `site.layer`; what padding columns hold does not matter. Masks,
    rotary tables and layer indices are the network's own; hooks on the blocks fire.
    """
    family, blocks = blocks_of(network)
    assert site.layer is not None
    before: list[tuple[nn.Module, bool, Any]] = []

    def passing(last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = hidden if last else hidden_states
            return (out, None) if family.tuple_blocks else out

        return forward

    try:
        for number in range(site.layer + 1):
            block = blocks[number]
            before.append((block, "forward" in vars(block), vars(block).get("forward")))
            block.forward = passing(number == site.layer)
        yield
    finally:
        for block, own, forward in before:
            if own:
                block.forward = forward
            else:
                del block.forward
