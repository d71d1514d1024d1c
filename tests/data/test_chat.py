"""A task whose prompts stand in a conversation: roles, answers, filters and files follow."""

from dataclasses import replace

import numpy as np
import pytest

import iit
from iit.data import EncodedPairs, Pairs
from iit.data.chat import in_chat
from iit.tasks import greater_than, ioi

SIZES = {"n_train": 12, "n_val": 4, "n_test": 4, "right_only": False}
SAID = "<|im_start|>{}\n{}<|im_end|>\n"
MESSAGES = [
    {"role": "system", "content": "Say who."},
    {"role": "user", "content": "Ada gave it to"},
    {"role": "assistant", "content": "Ben"},
    {"role": "user", "content": "Complete with one word: {prompt} (whom?)"},
]


def read_at(network, encoded, role, row):
    ids = encoded["input_ids"][row, encoded["positions"][role][row]].tolist()
    return network.tokenizer.decode(ids).strip()


def test_roles_answers_and_words_follow(narrow):
    pairs = Pairs.sample(ioi(), narrow, prompt={"messages": MESSAGES}, **SIZES)
    plain = Pairs.sample(ioi(), narrow, **SIZES)
    row = pairs.dataset[0]
    before = (
        SAID.format("system", "Say who.")
        + SAID.format("user", "Ada gave it to")
        + SAID.format("assistant", "Ben")
        + "<|im_start|>user\nComplete with one word: "
    )
    after = " (whom?)<|im_end|>\n<|im_start|>assistant\n"
    assert row["base"].startswith(before)
    assert row["base"].endswith(after)
    sentence = row["base"].removeprefix(before).removesuffix(after)
    assert sentence.endswith((" to", " with"))
    subject = sentence[slice(*(i - len(before) for i in row["base_roles"]["s2"]))]
    other = sentence[slice(*(i - len(before) for i in row["base_roles"]["io"]))]
    assert sentence.count(subject) == 2
    assert row["base_answer"] == other
    assert row["label"] in (subject, other)
    names = narrow.tokenizer(list(pairs.dataset["label"]), add_special_tokens=False)["input_ids"]
    assert {len(ids) for ids in names} == {1}, "a name is one token where it is the answer"
    dropped, before_chat = pairs.facts["dropped_words"], plain.facts["dropped_words"]
    assert dropped["name"] > before_chat["name"]
    assert dropped["place"] == before_chat["place"], "no answer is a place"
    assert pairs.fingerprint != plain.fingerprint
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, narrow).batch(range(12))
    for number, pair in enumerate(pairs.split("train")):
        for role, (start, stop) in pair["base_roles"].items():
            assert read_at(narrow, encoded["base"], role, number) == pair["base"][start:stop]
    assert encoded["base"]["answer"].shape == (12, 1)


def test_an_answer_that_is_begun_keeps_its_space(narrow):
    begun = [
        {"role": "user", "content": "{prompt}"},
        {"role": "assistant", "content": "The answer is"},
    ]
    pairs = Pairs.sample(ioi(), narrow, prompt={"messages": begun}, **SIZES)
    assert all(label.startswith(" ") for label in pairs.dataset["label"])
    assert pairs.dataset["base"][0].endswith("<|im_start|>assistant\nThe answer is")
    plain = Pairs.sample(ioi(), narrow, **SIZES)
    assert pairs.facts["dropped_words"] == plain.facts["dropped_words"]
    begun[1]["content"] = "The answer is "
    with pytest.raises(
        ValueError, match=r"changes the tokens of its prompt, which ends in '.*is '"
    ):
        Pairs.sample(ioi(), narrow, prompt={"messages": begun}, **SIZES)
    # The sentence itself may be what the answer begins with.
    begun = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "{prompt}"}]
    pairs = Pairs.sample(ioi(), narrow, prompt={"messages": begun}, **SIZES)
    assert pairs.dataset["label"][0].startswith(" ")


def test_other_variables_and_saved_pairs(narrow, tmp_path):
    pairs = Pairs.sample(ioi(), narrow, prompt="chat", **SIZES)
    assert pairs.dataset["base"][0].count("<|im_start|>user\n") == 1
    sampler = pairs.sampler
    other = replace(sampler.options, variable="io_name")(sampler.task, narrow)
    assert other.dataset["base"][0].count("<|im_start|>user\n") == 1, "one conversation, not two"
    assert sampler.prompts("test", 3, seed=0).given[0].startswith("<|im_start|>system\n")
    pairs.save(tmp_path / "pairs.parquet")
    loaded = Pairs.load(tmp_path / "pairs.parquet", variable="subject_position")
    assert loaded.fingerprint == pairs.fingerprint


def test_several_right_answers(narrow):
    task = in_chat(greater_than(), narrow, {})
    columns = task.draw(np.random.default_rng(0), task.pools, 1)
    setting = task.model.run({name: column[0] for name, column in columns.items()})
    assert task.answer(setting) == greater_than().answer(setting)
    spaced = replace(greater_than(), answer=lambda setting: (" a", " b"))
    assert in_chat(spaced, narrow, {}).answer(setting) == ("a", "b")


def test_an_alignment_stands_for_its_network(narrow):
    site = iit.Site("block_output", layer=1, position="s2")
    alignment = iit.Alignment(
        narrow, {"subject_position": iit.Edit(site, iit.VanillaIntervention())}
    )
    pairs = Pairs.sample(ioi(), alignment, prompt="chat", **SIZES)
    assert pairs.fingerprint == Pairs.sample(ioi(), narrow, prompt="chat", **SIZES).fingerprint


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("caht", r"data.prompt is plain, or .* got 'caht'"),
        ({"messages": [{"role": "user", "content": "Who?"}]}, "stands 0 times in this chat"),
        ({"messages": [{"role": "user", "content": "{prompt} {prompt}"}]}, "stands 2 times"),
        ({"messages": [{"role": "system", "content": "{prompt}"}]}, "Missing: the user"),
        ({"enable_thinking": False}, r"Missing: \['enable_thinking'\]"),
    ],
)
def test_what_is_refused(narrow, prompt, message):
    with pytest.raises(ValueError, match=message):
        Pairs.sample(ioi(), narrow, prompt=prompt, **SIZES)


def test_a_network_without_text_has_no_chat():
    network = iit.network.mlp(n_inputs=2, n_classes=2)
    for one in (network, None):
        with pytest.raises(ValueError, match="for a language model"):
            Pairs.sample(ioi(), one, prompt="chat", **SIZES)
