"""Contrasts on tiny networks, and what raw hooks give on them."""

import torch

from iit.patching import Contrast, patch
from tests.families import V, make
from tests.oracles import raw_hook
from tests.seeds import shifted

N = 2  # raw hooks on (batch·tokens, width) know batches of two


def contrast(family, lengths=(7, 5), width=1, seed=1):
    """Right-padded bases and sources of equal length, with answers of `width` tokens."""
    generator = torch.Generator().manual_seed(shifted(seed))

    def batch():
        ids = torch.randint(4, V, (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
        roles = {"a": torch.tensor([[1]] * len(lengths)), "b": torch.tensor([[3]] * len(lengths))}
        return {"input_ids": ids * mask, "attention_mask": mask, "positions": roles}

    answers = torch.arange(4, 4 + 2 * len(lengths) * width).view(2, len(lengths), width)
    base, source = ({**batch(), "answer": answer} for answer in answers)
    return Contrast.of_batches(make(family), base, source)


def inputs(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def last_logits(network, batch, hooks=()):
    """Tensor[batch, vocab] behind each prompt, under raw hooks: (family, component, layer, columns,
    function) each.
    """
    handles = [raw_hook(network, *hook) for hook in hooks]
    with torch.no_grad():
        logits = network(**inputs(batch)).logits
    for handle in handles:
        handle.remove()
    return logits[torch.arange(len(logits)), batch["attention_mask"].sum(1) - 1]


def raw_activation(network, family, component, layer, batch, columns=None):
    """What a raw hook reads."""
    seen = []
    hook = (
        family,
        component,
        layer,
        columns,
        lambda activation: seen.append(activation.clone()) or activation,
    )
    last_logits(network, batch, [hook])
    return seen[0]


def swapped(theirs, position=None):
    """A raw hook's function: `theirs` at the positions of each row (all real ones by default)."""

    def function(activation):
        new = activation.clone()
        if position is None:
            return theirs[:, : activation.shape[1]].clone()
        new[:, position] = theirs[:, position]
        return new

    return function


def difference(logits, found):
    label, own = found.label[:, :1], found.own[:, :1]
    return (logits.gather(1, label) - logits.gather(1, own)).squeeze(1).double().numpy()


def patched(network, pairs, sites, **options):
    """{site: (bool[pair], float[pair])}, what is right and the logit difference of all pairs."""
    every = Contrast.of(network, pairs, every=True)
    effects = patch(network, every, cells=sites, metric=("iia", "logit_difference"), **options)
    right, difference = effects.of("iia").astype(bool), effects.of("logit_difference")
    return dict(zip(sites, zip(right, difference, strict=True), strict=True))
