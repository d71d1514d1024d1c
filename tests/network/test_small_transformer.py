import numpy as np
import pytest
import torch

import iit
from iit.network import save_network, small_transformer
from iit.tasks import addition, mcqa, price_tag
from tests.seeds import shifted


@pytest.mark.parametrize("make", [addition, price_tag, mcqa])
def test_every_word_of_a_task_is_one_token(make):
    task = make()
    network = small_transformer(task.vocabulary, n_layers=1, n_heads=2, width=16)
    columns = task.draw(np.random.default_rng(shifted(0)), task.pools, 50)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    texts = [task.write(row).text for row in rows]
    answers = [task.answer(task.model.run(row)) for row in rows]
    batch = network.encode(texts, answers=answers)
    assert batch["attention_mask"].sum(1).tolist() == [len(text.split()) for text in texts]
    assert batch["answer"].shape[1] == len(answers[0].split())
    assert [
        network.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"].tolist()
    ] == [t.split() for t in texts]


def test_its_components_are_sites_and_it_is_saved(tmp_path):
    torch.manual_seed(shifted(0))
    network = small_transformer(["a", "b", "c", "a"], n_layers=2, n_heads=2, width=16)
    assert len(network.tokenizer) == 4, "three words and padding"
    batch = network.encode(["a b c", "c a"])
    sites = [
        iit.Site("block_output", layer=1, position="last"),
        iit.Site("attention_value_output", layer=0, head=1, position="last"),
        iit.Site("mlp_activation", layer=0, position="last"),
    ]
    assert [iit.capture(network, batch, [site])[site].shape[-1] for site in sites] == [16, 8, 64]
    save_network(network, tmp_path)
    loaded = iit.load_network(str(tmp_path))
    again = loaded.encode(["a b c", "c a"])
    assert torch.equal(again["input_ids"], batch["input_ids"])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(loaded.model(**inputs).logits, network.model(**inputs).logits)
    with pytest.raises(ValueError, match=r"cannot read \['d', 'e'\]"):
        loaded.encode(["a b", "d e a"])


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"vocabulary": []}, "vocabulary is empty"),
        ({"vocabulary": "ab", "width": 12, "n_heads": 4}, "no multiple of 8"),
    ],
)
def test_errors_name_the_culprit(kwargs, said):
    with pytest.raises(ValueError, match=said):
        small_transformer(**kwargs)
