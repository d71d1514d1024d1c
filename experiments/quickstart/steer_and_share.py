"""Steer generation by a difference of means, then save it and load it again.

`python experiments/quickstart/steer_and_share.py`
"""

import torch

import iit

lm = iit.load_network("smollm2")
assert isinstance(lm, iit.LanguageModel)
site = iit.Site("block_output", layer=10)
sea = [
    "The ship sailed across the deep blue ocean",
    "Waves crashed on the sandy beach",
    "Dolphins and whales swam beside the boat",
]
land = [
    "The manager opened the door of the office",
    "People walked along the street",
    "Cars and buses passed by the house",
]


def mean(texts: list[str]) -> torch.Tensor:
    """The mean residual stream over every token but the first: Tensor[width]."""
    batch = lm.encode(texts)
    weight = batch["attention_mask"][:, 1:].unsqueeze(-1)
    return (iit.capture(lm, batch, site)[site][:, 1:] * weight).sum((0, 1)) / weight.sum()


prompts = lm.encode(
    [
        "The best part of the holiday was",
        "The painting on the wall shows",
        "From the window you could see",
    ]
)
options = {"max_new_tokens": 20, "do_sample": False}
for strength in (0, 1, 2):
    steered = iit.IntervenedModel(
        lm, {site: iit.AdditionIntervention(strength * (mean(sea) - mean(land)))}
    )
    ids = steered.generate(prompts, scope="all", **options)
    print(
        f"strength {strength}",
        *lm.tokenizer.batch_decode(ids, skip_special_tokens=True),
        sep="\n  ",
    )

# config.json and safetensors; `push_to_hub` sends the same folder
steered.save_pretrained("outputs/quickstart/steered")
again = iit.IntervenedModel.from_pretrained("outputs/quickstart/steered", lm)
assert torch.equal(again.generate(prompts, scope="all", **options), ids)
