"""Conversations: messages, rendered as a text by the tokenizer's own chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from iit.network.spans import last_mention

Messages = Sequence[Mapping[str, Any]]
"""{"role": system, user or assistant, "content": a text} each, as transformers takes them."""
MARK = "zq7CONTENT7qz"
"""Stands in for words, to see where the template puts them."""


class Conversation(str):
    """A conversation as a text, which ends where an answer begins (see `render`).

    Attributes:
        span: (words, message) → where the last mention of the words in a message is in the text, as
            a slice. By default the message is the user's last one; otherwise it is a number. It
            raises ValueError where the message lacks the words, and where the template changes
            them, repeats them or cuts them away.
    """

    span: Any


def render(tokenizer: Any, messages: Messages, **options: Any) -> Conversation:
    """Render messages as a text that ends where an answer begins.

    Where the last message is the assistant's, the answer is begun, and goes on where the text ends.

    Arguments:
        tokenizer: a transformers tokenizer with a chat template.
        messages: among them one of the user.
        options: of the template, such as `enable_thinking`, and of `apply_chat_template`.

    Raises:
        ValueError: a message is no mapping with a role; there is no template, it does not know an
            option, or it does not write what the user or the system says; no message is the user's;
            the tokenizer would put a token before the text that the template does not write. What
            the template raises.
    """

    def text_of(messages: Messages) -> str:
        begun = [message["role"] for message in messages][-1:] == ["assistant"]
        ends = {"add_generation_prompt": not begun, "continue_final_message": begun}
        return tokenizer.apply_chat_template(messages, tokenize=False, **ends | options)

    if not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise ValueError(f"A message is {{'role': …, 'content': …}}; got {messages!r}.")
    text = Conversation(text_of(messages))
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    # Templates may cut the thoughts out of what an assistant said.
    said = [message["content"].strip() for message in messages if message["role"] != "assistant"]
    if tokenizer("A")["input_ids"][0] == tokenizer.bos_token_id:
        said.append(tokenizer.bos_token)
    names = re.findall(r"\w+", f"{tokenizer.chat_template} continue_final_message")
    lost = [part for part in said if part not in text] + list(options.keys() - names)
    if lost or not users:
        raise ValueError(
            "A conversation needs a message of the user, and a chat template that writes what is "
            "said and the token that the tokenizer puts first, and that knows each option. "
            f"Missing: {lost or 'the user'}.\n{text}"
        )

    def span(words: str, message: int = users[-1], role: str = "span") -> slice:
        # Templates trim the spaces around a content.
        words, marked = words.strip(), list(messages)
        content = messages[message]["content"]
        start, stop = last_mention(content, words, role=role)
        marked[message] = {**marked[message], "content": content[:start] + MARK + content[stop:]}
        before, _, after = text_of(marked).partition(MARK)
        if before + words + after != text:
            raise ValueError(
                f"Role {role!r}: the chat template changes {words!r} of message {message}, repeats "
                f"it or cuts it away:\n{text}"
            )
        return slice(len(before), len(before) + len(words))

    text.span = span
    return text
