"""Prompts in conversations: a task whose prompts stand in a message."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from iit.causal import Inputs, Prompt, Task

SLOT = "{prompt}"
"""Where a task's own prompt stands in a message."""


def in_chat(task: Task, network: Any, chat: Any) -> Task:
    """The task with its prompts in a conversation, in which roles stay at their words.

    The template writes the conversation once. Each prompt then takes the place of `{prompt}`.

    Answers keep the space before them where the conversation ends in a word, its punctuation or a
    closing bracket, as in "The answer is", "Assistant:", "[/INST]". They lose it elsewhere: behind
    a new line, an opening bracket, or a mark such as "<|sep|>".

    Arguments:
        task: its prompts are texts.
        network: renders the conversation by its tokenizer's chat template.
        chat: "messages" are the conversation, by default one of the user's. One of them has
            `{prompt}` in its content. Others may be the system's, examples, or at the end the
            beginning of the answer. All else are options of the template, as `LanguageModel.render`
            takes them.

    Raises:
        ValueError: the network reads no text, or `{prompt}` does not stand in one message. What
            `LanguageModel.render` refuses.
    """
    # An alignment stands for the network that it studies.
    network = getattr(network, "studied", network)
    if not hasattr(network, "render") or isinstance(chat, str):
        raise ValueError(
            f"data.prompt is plain, or for a language model also chat or its options; got {chat!r}."
        )
    stem = network.render(**{"messages": [{"role": "user", "content": SLOT}]} | chat)
    if stem.count(SLOT) != 1:
        raise ValueError(f"{SLOT} stands {stem.count(SLOT)} times in this chat, not once:\n{stem}")
    before, after = stem.split(SLOT)

    def write(inputs: Inputs) -> Prompt:
        prompt: Any = task.write(inputs)
        roles = {}
        for role, (start, stop) in prompt.roles.items():
            roles[role] = start + len(before), stop + len(before)
        return Prompt(before + prompt.text + after, roles)

    def bare(setting: Mapping[str, Any]) -> Any:
        answer: Any = task.answer(setting)
        if isinstance(answer, str):
            return answer.lstrip()
        return tuple(map(str.lstrip, answer))

    if re.search(r"[\w.,:;?!)\]}]\Z", stem):
        return replace(task, write=write)
    return replace(task, write=write, answer=bare, stem=str(stem))
