"""Steering a real language model: a difference of means, added at one site, changes what greedy
generation speaks about.
"""

import pytest
import torch

import iit

SEA = [
    "The ship sailed across the deep blue ocean",
    "Waves crashed on the sandy beach at high tide",
    "The fishermen cast their nets into the sea",
    "Dolphins and whales swam beside the boat",
    "The sailor steered the boat through the waves",
    "Coral reefs are full of fish and sea turtles",
]
LAND = [
    "The manager opened the door of the office",
    "People walked along the street at noon",
    "The students read their books in class",
    "Cars and buses passed by the house",
    "The woman drove the car through the town",
    "Libraries are full of books and papers",
]
# Layer 10 and strength 2 were chosen on other prompts than these.
PROMPTS = [
    "The best part of the holiday was",
    "We talked for hours about",
    "The painting on the wall shows",
    "In the morning the children ran to",
    "He closed his eyes and remembered",
    "The first chapter of the book describes",
    "Everyone in the village knows the tale of",
    "From the window you could see",
]
WORDS = set(
    "sea ocean boat ship wave waves beach fish sail sailing sailor coast water island islands "
    "coral marine whale whales dolphins coastal shore tide fishing".split()
)


def mean(lm, texts, site):
    """The mean residual stream over every token but the first."""
    batch = lm.encode(texts)
    weight = batch["attention_mask"][:, 1:].unsqueeze(-1)
    return (iit.capture(lm, batch, site)[site][:, 1:] * weight).sum((0, 1)) / weight.sum()


@pytest.mark.long
def test_a_difference_of_means_changes_the_topic(smollm2):
    site = iit.Site("block_output", layer=10)
    direction = mean(smollm2, SEA, site) - mean(smollm2, LAND, site)
    batch = smollm2.encode(PROMPTS)
    n_prompt = batch["input_ids"].shape[1]

    options = {
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": smollm2.tokenizer.pad_token_id,
    }
    new = {0: smollm2.model.generate(**left_padded(batch), **options)[:, n_prompt:]}
    for strength in (0, 2):
        edited = iit.IntervenedModel(
            smollm2, {site: iit.AdditionIntervention(strength * direction)}
        )
        ids = edited.generate(batch, scope="all", **options)[:, n_prompt:]
        assert strength or torch.equal(ids, new[0]), "steering by nothing is `generate`"
        new[strength] = ids
    n_about = {
        k: sum(map(is_about_the_sea, smollm2.tokenizer.batch_decode(ids))) for k, ids in new.items()
    }
    assert n_about[0] == 0
    assert n_about[2] >= 6  # all 8 when this was written


def is_about_the_sea(text):
    return any(word.strip(".,!;:'\"").lower() in WORDS for word in text.split())


def left_padded(batch):
    lengths, seq = batch["attention_mask"].sum(1), batch["attention_mask"].shape[1]
    index = (torch.arange(seq) - (seq - lengths).unsqueeze(1)) % seq
    return {key: batch[key].gather(1, index) for key in ("input_ids", "attention_mask")}
