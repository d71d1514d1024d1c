"""Conversations are rendered by the tokenizer's own template; roles are found in what is said."""

import pickle

import pytest
import torch
import transformers as t

import iit
from iit.network import LanguageModel
from tests.families import SIZES
from tests.made_tokenizers import byte_level, metaspace

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nJohn gave Mary to user"
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>"
    "\n\n{% endif %}{% endif %}"
)
"""As SmolLM2 and Qwen 3: a system prompt by default, an empty thinking block on demand."""
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|end|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
"""As Llama 3: it begins with a beginning of text, and trims contents."""
INST = (
    "{{ bos_token }}{% set said = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set said.system = message['content'] + '. ' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ said.system + message['content'] | trim }} "
    "[/INST]{% else %} {{ message['content'].split('</think>')[-1] | trim }} "
    "{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2: the system speaks in the user's message; thoughts are cut."""


def network(tokenizer, template, marks=()):
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    torch.manual_seed(0)
    config = t.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)})
    return LanguageModel(t.LlamaForCausalLM(config), tokenizer, "toy")


def chatml():
    return network(byte_level(), CHATML, ("<|im_start|>", "<|im_end|>"))


def llama():
    return network(byte_level("<s> $A"), LLAMA, ("<|start|>", "<|end|>", "<|eot|>"))


def inst():
    return network(metaspace("<s> $A"), INST)


KINDS = {"chatml": chatml, "llama": llama, "inst": inst}
MESSAGES = [
    {"role": "system", "content": "Mary left"},
    {"role": "user", "content": "John gave Mary milk to"},
    {"role": "assistant", "content": "Mary"},
    {"role": "user", "content": " When Mary left John to user and Mary "},
]
TEXTS = {
    "chatml": "<|im_start|>system\nMary left<|im_end|>\n<|im_start|>user\nJohn gave Mary milk to"
    "<|im_end|>\n<|im_start|>assistant\nMary<|im_end|>\n<|im_start|>user\n When Mary left John to "
    "user and Mary <|im_end|>\n<|im_start|>assistant\n",
    "llama": "<s><|start|>system<|end|>\n\nMary left<|eot|><|start|>user<|end|>\n\nJohn gave Mary "
    "milk to<|eot|><|start|>assistant<|end|>\n\nMary<|eot|><|start|>user<|end|>\n\nWhen Mary left "
    "John to user and Mary<|eot|><|start|>assistant<|end|>\n\n",
    "inst": "<s>[INST] Mary left. John gave Mary milk to [/INST] Mary </s>[INST] Mary left. When "
    "Mary left John to user and Mary [/INST]",
}


def read_at(lm, batch, role, row=0):
    """The tokens of a role, without the marks of a space."""
    ids = batch["input_ids"][row, batch["positions"][role][row]].tolist()
    return [token.strip("▁Ġ") for token in lm.tokenizer.convert_ids_to_tokens(ids)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_written_by_hand_and_has_one_beginning(kind):
    lm = KINDS[kind]()
    chat = lm.render(MESSAGES)
    assert chat == TEXTS[kind]
    batch = lm.encode(MESSAGES)
    expected = lm.tokenizer(TEXTS[kind], add_special_tokens=False)["input_ids"]
    assert batch["input_ids"].tolist() == [expected]
    assert batch["input_ids"][0].tolist().count(1) == (kind == "inst") + (kind == "llama")
    pickle.dumps(lm)
    # As a plain text, from a saved file, it is the same.
    assert lm.encode(str(chat))["input_ids"].tolist() == [expected]
    rendered = lm.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert rendered["input_ids"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_users_last_message(kind):
    lm = KINDS[kind]()
    chat = lm.render(MESSAGES)
    last = chat.rindex("user and") if kind == "inst" else chat.rindex("to user and") + 3
    assert chat.span("user") == slice(last, last + 4)
    assert chat.span(" Mary ").start == chat.rindex("Mary")
    assert chat.span("left").start == chat.rindex("left")
    places = {"s": "John", "when": "When", "end": "Mary", "first": chat.span("John", 1)}
    batch = lm.encode([MESSAGES, "John left"], {r: [p, None] for r, p in places.items()})
    expected = {"s": ["John"], "when": ["When"], "end": ["Mary"], "first": ["John"]}
    assert {role: read_at(lm, batch, role) for role in places} == expected
    columns = {role: int(batch["positions"][role][0, 0]) for role in places}
    assert columns["first"] < columns["when"] < columns["s"] < columns["end"]
    assert batch["positions"]["s"][1].tolist() == [-100]
    before = {
        "chatml": {0: "system\n", 1: "user\nJohn gave ", 2: "assistant\n", -2: "assistant\n"},
        "llama": {0: "system<|end|>\n\n", 1: "\n\nJohn gave ", 2: "assistant<|end|>\n\n"},
        "inst": {1: "left. John gave ", 2: "[/INST] "},
    }
    for number, text in before[kind].items():
        place = chat.span("Mary", number)
        assert chat[: place.stop].endswith(f"{text}Mary")
        assert chat.count(f"{text}Mary") == 1


def test_what_is_captured_at_a_role_is_what_a_hook_sees():
    lm = llama()
    tokens = ["<s>", "<|start|>", *"user", "<|end|>", "<unk>", "<unk>", "John", "Ġleft", "Ġto"]
    tokens += ["<|eot|>", "<|start|>", *"assist", "an", "t", "<|end|>", "<unk>", "<unk>"]
    batch = lm.encode([{"role": "user", "content": " John left to "}], {"s": "left"})
    assert lm.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()) == tokens
    seen = []
    block = lm.model.model.layers[0]
    hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        lm.model(input_ids=batch["input_ids"])
    hook.remove()
    site = iit.Site("block_output", layer=0, position="s")
    captured = iit.capture(lm, batch, [site])[site]
    torch.testing.assert_close(captured[:, 0], seen[0][:, tokens.index("Ġleft")])


def test_words_of_the_template_are_nobodys():
    lm = chatml()
    messages = [{"role": "user", "content": "When Mary left"}]
    assert "John" in lm.render(messages)
    for words in ("John", "system", "assistant", "user"):
        with pytest.raises(ValueError, match=f"Role 's': '{words}' does not occur"):
            lm.encode(messages, {"s": words})


def test_what_the_template_repeats_or_cuts_away_is_refused():
    lm = inst()
    with pytest.raises(ValueError, match=r"changes 'Mary' of message 0, repeats it or cuts it"):
        lm.render(MESSAGES).span("Mary", 0)
    thought = [*MESSAGES[:2], {"role": "assistant", "content": "John</think>Mary"}, MESSAGES[3]]
    chat = lm.render(thought)
    assert chat == TEXTS["inst"]
    assert chat.span("Mary", 2).start == chat.index("Mary </s>")
    with pytest.raises(ValueError, match=r"changes 'John' of message 2, repeats it or cuts it"):
        chat.span("John", 2)


def test_an_answer_that_is_begun_goes_on():
    begun = [MESSAGES[1], {"role": "assistant", "content": "John left"}]
    text = "<s><|start|>user<|end|>\n\nJohn gave Mary milk to<|eot|><|start|>assistant<|end|>\n\n"
    lm = llama()
    assert lm.render(begun) == f"{text}John left"
    batch = lm.encode(begun, {"s": "Mary"}, " Mary")
    assert read_at(lm, batch, "s") == ["Mary"]
    assert read_at(lm, batch, "last") == ["left"]
    assert lm.tokenizer.convert_ids_to_tokens(batch["answer"][0].tolist()) == ["ĠMary"]
    ends = lm.encode(MESSAGES[1:2], answers="Mary")["answer"][0].tolist()
    assert lm.tokenizer.convert_ids_to_tokens(ends) == ["Mary"]
    begun[1]["content"] = "left Mar"
    with pytest.raises(ValueError, match="changes the tokens of its prompt"):
        lm.encode(begun, answers="y")


def test_options_of_the_template():
    lm = chatml()
    chat = lm.render(MESSAGES, enable_thinking=False)
    assert chat == TEXTS["chatml"] + "<think>\n\n</think>\n\n"
    assert chat.span("John") == lm.render(MESSAGES).span("John")
    assert lm.encode([chat, MESSAGES])["attention_mask"].sum(1).diff() < 0
    lm.tokenizer.chat_template = CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}<think>\n{{ message['reasoning_content'] }}\n"
        "</think>\n\n{% endif %}{{ message['content'] }}",
    )
    thinks = {"role": "assistant", "content": "", "reasoning_content": "Mary left"}
    opened = lm.render([MESSAGES[1], thinks], continue_final_message="reasoning_content")
    assert opened.endswith("<|im_start|>assistant\n<think>\nMary left")


def test_what_cannot_be_rendered():
    lm = chatml()
    for messages in (MESSAGES[:1], MESSAGES[:1] + MESSAGES[2:3]):
        with pytest.raises(ValueError, match="Missing: the user"):
            lm.encode([messages])
    # Parts of an option's name, and words of the text, are no options either.
    for option in ("enable_thought", "thinking", "milk"):
        with pytest.raises(ValueError, match=rf"Missing: \['{option}'\]"):
            lm.render(MESSAGES, **{option: False})
    for messages in (["Mary left"], [{"content": "Mary left"}]):
        with pytest.raises(ValueError, match=r"A message is .* got"):
            lm.encode([messages])
    with pytest.raises(ValueError, match="empty conversation"):
        lm.encode([[]])
    lm.tokenizer.chat_template = CHATML.replace("{{ message['content'] }}", "")
    with pytest.raises(ValueError, match=r"Missing: \['Mary left', 'John gave"):
        lm.encode(MESSAGES)
    # It stands in the template, which does not write it.
    lm.tokenizer.chat_template = "{# Mary left #}" + CHATML.replace(
        "for message in messages", "for message in messages[1:]"
    )
    with pytest.raises(ValueError, match=r"Missing: \['Mary left'\]"):
        lm.encode(MESSAGES[:2])
    lm.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"tokenizer.chat_template is not set"):
        lm.encode(MESSAGES)
    adding = network(byte_level("<s> $A"), CHATML)
    with pytest.raises(ValueError, match=r"the tokenizer puts first.*Missing: \['<s>'\]"):
        adding.encode(MESSAGES)
    adding.tokenizer.add_bos_token = False
    assert adding.encode(MESSAGES)["input_ids"][0, 0] != 1


def test_smollm2(smollm2):
    messages = [{"role": "user", "content": "You are a helpful user, Mary said to Mary"}]
    batch = smollm2.encode(messages, {"s": "Mary", "word": "helpful"}, answers="John")
    ids = smollm2.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert batch["input_ids"].tolist() == [ids]
    tokens = smollm2.tokenizer.convert_ids_to_tokens(ids)
    assert batch["positions"]["s"].item() == len(tokens) - 1 - tokens[::-1].index("ĠMary")
    assert batch["positions"]["word"].item() == len(tokens) - 1 - tokens[::-1].index("Ġhelpful")
    assert tokens.count("Ġhelpful") == 2
    question = [{"role": "user", "content": "Which city is the capital of France?"}]
    begun = [*question, {"role": "assistant", "content": "The capital of France is"}]
    assert smollm2.answers_right([begun, begun], [" Paris", " Rome"]).tolist() == [True, False]
