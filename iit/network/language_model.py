"""A frozen language model with its tokenizer: prompts, roles and answers become batches."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, SupportsIndex, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from iit.batch import IGNORED, at_rows, behind_bridge, trimmed
from iit.network.answering import (
    ANSWER_ROLE,
    head_at,
    is_encoder_decoder,
    is_masked,
    is_sequence_classifier,
    logits_at,
    with_answer,
)
from iit.network.conversation import Conversation, Messages, render
from iit.network.dimensions import device_of, dtype_of
from iit.network.fingerprint import fingerprint
from iit.network.images import with_images
from iit.network.inputs import prepare
from iit.network.limits import check_limits, n_embeddings, unwrapped
from iit.network.spans import last_mention, tokens_of_span
from iit.network.tokens import TokenizedTexts, Tokens, with_special_tokens
from iit.progress import progress
from iit.result import correct

RolePlace = str | SupportsIndex | Sequence[SupportsIndex] | slice | None
"""Where a role is in one text.

Its words, a token index or several, a slice of characters, or None where the text lacks it.
"""


Answer = str | int | Sequence[str]
"""What a text is answered by: a text, several that are right, or a class."""


Text = str | Mapping[str, Any] | Messages
"""A prompt: its text, {"text": …, "image": …}, or the messages of a conversation."""


@final
class LanguageModel:
    """A network under study that reads text, frozen and in eval mode, and its tokenizer.

    It answers with tokens, or with a class where it is a sequence classifier. A tokenizer without a
    padding token pads with its end-of-text token; the attention mask tells padding apart.

    Arguments:
        model: a transformers model, one inside of a wrapper (PEFT), or any module whose forward
            takes `input_ids` and `attention_mask`. Its output is, or holds, Tensor[batch, seq,
            vocab] (see `logits_of`).
        tokenizer: its tokenizer, a fast one.
        name: by default the config's `name_or_path`, else the model's class.
        revision: of a network from the hub.
        processor: of a network that takes images beside the text, transformers' own. By default it
            is the tokenizer.

    Raises:
        ValueError: for a tokenizer that does not know the characters of its tokens; for a sequence
            classifier whose outputs are no classes, or whose config has no padding token.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        revision: str | None = None,
        processor: Any = None,
    ):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell which characters a token covers; use a "
                "fast tokenizer."
            )
        # Frozen: whoever studies a network leaves its weights alone.
        self.model: Any = model.eval().requires_grad_(False)
        behind_bridge(model).eval()
        modules: Any = model.modules()
        for module in modules:
            # Four bits of bitsandbytes on a CPU: its fast kernel repacks the weights in the first
            # run, and passes no gradient on.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        self.tokenizer, self.processor = tokenizer, processor or tokenizer
        # (messages, **options) → a conversation, which `encode` takes as a text.
        self.render = partial(render, tokenizer)
        # A module of one's own may have no config.
        self._config: Any = getattr(unwrapped(model), "config", None)
        name = name or getattr(self._config, "name_or_path", None)
        self.name = name or type(model).__name__
        self.revision = revision
        self.masked, self.encoder_decoder = is_masked(model), is_encoder_decoder(model)
        self.classifies = is_sequence_classifier(model)
        if self.classifies:
            self._check_classes()
        self._texts = TokenizedTexts()
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights. Quantised weights, which are integers, do not count."""
        return dtype_of(self.model)

    def fingerprint(self) -> str:
        """A text that tells these weights from others (see `iit.network.fingerprint`)."""
        return fingerprint(self.model)

    def __repr__(self) -> str:
        n = sum(map(Tensor.numel, self.model.parameters()))
        return (
            f"LanguageModel({self.name}, {type(self.model).__name__}, {n / 1e6:.0f}M parameters, "
            f"{self.dtype}, {self.device})"
        )

    def encode(
        self,
        texts: Text | Sequence[Text],
        positions: Mapping[str, RolePlace | Sequence[RolePlace] | Tensor] | None = None,
        answers: Answer | Sequence[Answer] | None = None,
        *,
        special_tokens: bool | None = None,
    ) -> dict[str, Any]:
        """Tokenize prompts, right-padded, and resolve their roles and answers.

        Arguments:
            texts: the prompts; a single one may stand alone. Where the network takes images, each
                may be {"text": …, "image": …}: a picture, its file, or the bytes of one. The text
                holds the processor's placeholder once; as a role, it is all tokens of the image. A
                conversation is a list of messages, {"role": …, "content": …}, rendered by the
                tokenizer's chat template. `render` does so with options.
            positions: {role: one place for each text}; for a single text the place may stand alone.
                A place is words (their last mention), a slice of characters, or None where the text
                lacks the role. It may also be a token index, or a list of them, over the prompt's
                real tokens; a negative one counts from the end. `last` is always the text's last
                token. In a conversation, words are those of the user's last message, and a slice
                counts the characters of the rendered text: `render(…).span(words, message)` is such
                a slice, of words in any message.
            answers: one for each text, as it continues the prompt: " John", or "John" at the start
                of a line, where most conversations end. It may be several answers of one token,
                each of them right. The answers of a masked language model stand at the masks (the
                role `mask`). Those of an encoder-decoder begin the decoder's text. A sequence
                classifier answers with a class: its number, or its name in the config.
            special_tokens: True puts all of the tokenizer's special tokens around each text, False
                none. By default a decoder's texts get no end token, and a text that begins with
                special tokens, as a conversation does, gets no second ones.

        Returns:
            `input_ids`, `attention_mask`: LongTensor[batch, seq].
            `positions`: {role: LongTensor[batch, n]}, −100 = absent. It always has `last`, and
                `ROLE_last`, the last token of each role.
            `answer`, where there are answers: LongTensor[batch, n_answer], or LongTensor[batch, 1,
            n_alternatives] where several are right; −100 padded.
            `decoder_input_ids`, for an encoder-decoder: the start of its decoder's text.
            What the processor makes of images, such as `pixel_values`.

        Raises:
            ValueError: an empty text or answer; an answer outside the vocabulary, or that is no
                class; numbers that do not fit; a place that a text does not have, quoting the text
                and marking the place; a text that is too long for the network; an image for a
                network that has no encoder for it, or for some of the texts only.
        """
        prompts: Any = [texts] if isinstance(texts, str | Mapping) else list(texts)
        if not prompts:
            raise ValueError("There are no texts to encode.")
        if isinstance(prompts[0], Mapping) and "role" in prompts[0]:
            # The messages of a single conversation.
            prompts = [prompts]
        texts, images = self._apart(prompts)
        positions = dict(positions or {})
        # These roles are filled in below, or by the answer.
        for role in positions:
            if role == "last" or (role == "mask" and self.masked) or ANSWER_ROLE.fullmatch(role):
                raise ValueError(
                    f"The role {role!r} has its own token; give another name to another place."
                )
        plain = tokens = self._tokenized(texts, special_tokens)
        inputs: dict[str, Tensor] = {}
        if images:
            # Roles are found among the tokens with images, answers behind those of the text.
            tokens, inputs = with_images(self.processor, texts, images, plain)
        ids = [row.ids for row in tokens]
        if [] in ids:
            number = ids.index([])
            raise ValueError(f"Text {number} is empty: {texts[number]!r}.")
        roles: dict[str, Tensor] = {}
        for role, places in positions.items():
            listed = _one_a_text(places, len(texts), role)
            # The tokens of the role in each text; [] where it is absent.
            indices = []
            for text, place, row in zip(texts, listed, tokens, strict=True):
                indices.append(_tokens_of_place(text, place, row.offsets, role))
            roles[role] = _padded(indices, IGNORED)
            # A role of that name that was given wins.
            if f"{role}_last" not in positions:
                roles[f"{role}_last"] = _padded([row[-1:] for row in indices], IGNORED)
        # The last token of the text itself, not a special token behind it.
        roles["last"] = torch.tensor([[row.stop - 1] for row in tokens])
        if self.masked:
            mask = self.tokenizer.mask_token_id
            masks = []
            for row in ids:
                masks.append([i for i, token in enumerate(row) if token == mask])
            roles["mask"] = _padded(masks, IGNORED)
        pad: Any = self.tokenizer.pad_token_id or 0
        if self.classifies:
            # Some find the last token of a text by this.
            pad = self._config.get_text_config().pad_token_id
        if pad >= n_embeddings(self.model):
            # A padding token that was added to the tokenizer alone has no embedding.
            pad = 0
        batch: dict[str, Any] = {
            "input_ids": _padded(ids, pad),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
            "positions": roles,
            **inputs,
        }
        # A classifier makes the decoder's tokens itself.
        if self.encoder_decoder and not self.classifies:
            batch["decoder_input_ids"] = torch.tensor([self._decoder_start()] * len(texts))
        if answers is not None:
            if isinstance(answers, str | int):
                answers = [answers]
            if len(answers) != len(texts):
                raise ValueError(f"{len(texts)} texts need as many answers; got {len(answers)}.")
            if self.classifies:
                batch["answer"] = self._classes(answers)
            else:
                batch["answer"] = self._answers(answers, texts, plain)
        check_limits(self.model, batch["input_ids"], batch["attention_mask"].sum(1))
        return batch

    def _decoder_start(self) -> list[int]:
        """The tokens that begin the decoder's text, as transformers chooses them."""
        settings: Any = getattr(self.model, "generation_config", None) or self.model.config
        start = getattr(settings, "decoder_start_token_id", None)
        if start is None:
            start = getattr(settings, "bos_token_id", None)
        if start is None:
            raise ValueError(
                f"{self.name} does not say how its decoder's text begins: set "
                "`generation_config.decoder_start_token_id` of the network."
            )
        # Some decoders force a first token behind the start, such as a language's.
        forced = getattr(settings, "forced_bos_token_id", None)
        if forced is None:
            return [start]
        return [start, forced]

    def batches(
        self,
        texts: Sequence[str],
        positions: Mapping[str, Sequence[Any]] | None = None,
        *,
        size: int = 64,
    ) -> DataLoader[int]:
        """The texts in batches, as `encode` gives them; each is tokenized when it is asked for.

        `iit.capture_dataset` reads them.

        Arguments:
            positions: role → one place for each text, as in `encode`.
            size: texts a batch.

        Raises:
            ValueError: a size below 1; places that are not as many as the texts. While it is read:
                as `encode`.
        """
        listed = {
            role: _one_a_text(places, len(texts), role)
            for role, places in (positions or {}).items()
        }

        def encoded(rows: list[int]) -> dict[str, Any]:
            places = {role: _at(column, rows) for role, column in listed.items()}
            return self.encode(_at(texts, rows), places)

        # With a generator of its own it draws nothing from everybody's.
        loader: Any = DataLoader
        return loader(
            range(len(texts)), batch_size=size, collate_fn=encoded, generator=torch.Generator()
        )

    def answer_tokens(
        self, texts: Sequence[str], answers: Sequence[str], tokens: Sequence[Tokens] | None = None
    ) -> list[list[int]]:
        """The tokens of each answer, taken from the tokens of prompt and answer together.

        Arguments:
            texts: the prompts.
            answers: one for each prompt.
            tokens: the prompts' tokens, where they are known.

        Raises ValueError for an answer that changes the prompt's own tokens. Warns of an answer
        that lacks its space.
        """
        prompts = [row.text_ids for row in tokens or self._tokenized(texts)]
        if self.encoder_decoder or self.masked:
            answers = list(map(str.strip, answers))
        if self.encoder_decoder:  # the decoder's text begins with its answer
            texts, prompts = [""] * len(texts), [[]] * len(texts)
        if self.masked:
            mask = str(self.tokenizer.mask_token)
            mask_id: Any = self.tokenizer.mask_token_id
            if any(mask not in text for text in texts):
                raise ValueError(
                    f"A masked language model is read at its mask: put {mask} into every text "
                    "that is answered."
                )
            # The answer replaces the mask, so the prompt is what stands before it.
            texts = [text.partition(mask)[0] for text in texts]
            prompts = [ids[: ids.index(mask_id)] for ids in prompts]
        whole = list(map("{}{}".format, texts, answers))
        continuations = []
        lacking = ""
        rows = self._tokenizer_rows(whole, add_special_tokens=False)
        for text, prompt, answer, row in zip(texts, prompts, answers, rows, strict=True):
            joined = row["input_ids"]
            # A tokenizer may merge the end of the prompt with the start of the answer.
            if joined[: len(prompt)] != prompt:
                raise ValueError(
                    f"The answer {answer!r} changes the tokens of its prompt, which ends in "
                    f"{text[-20:]!r}. A space between the two belongs to the answer: let the "
                    "prompt end without one and the answer begin with one."
                )
            continuations.append(joined[len(prompt) :])
            # Languages without spaces between words need none here, either.
            if " " in text and answer[:1].isalpha() and re.search(r"[\w.,:;?!]\Z", text):
                lacking = answer
        if lacking:
            warnings.warn(
                f"Answers lack the space before them: probably ' {lacking}' is meant, not "
                f"{lacking!r}.",
                stacklevel=2,
            )
        return continuations

    def _answers(
        self,
        answers: Sequence[Any],
        texts: Sequence[str],
        tokens: Sequence[Tokens],
    ) -> Tensor:
        """LongTensor[batch, n_answer], or [batch, 1, n_alternatives] where several are right."""
        several = any(not isinstance(answer, str) for answer in answers)
        # Flat lists of all answers, and the text that each belongs to.
        rows: list[int] = []
        flat: list[str] = []
        for row, right in enumerate(answers):
            if not isinstance(right, str | list | tuple):
                raise ValueError(
                    f"A text is answered by a text, or by several that are right; got {right!r}."
                )
            if isinstance(right, str):
                right = [right]
            rows += [row] * len(right)
            flat += right
        padded: list[list[int]] = [[] for _ in answers]
        unknown: Any = self.tokenizer.unk_token_id
        ids = self.answer_tokens(_at(texts, rows), flat, _at(tokens, rows))
        for row, answer, answer_ids in zip(rows, flat, ids, strict=True):
            if unknown in answer_ids and str(self.tokenizer.unk_token) not in answer:
                raise ValueError(
                    f"The answer {answer!r} is outside the vocabulary of {self.name}: its tokens "
                    f"are {answer_ids}, {unknown} the unknown one."
                )
            if not answer_ids or (several and len(answer_ids) > 1):
                raise ValueError(
                    "Of several right answers each is one token, and any answer has one at least; "
                    f"{answer!r} has {len(answer_ids)}."
                )
            padded[row] += answer_ids
        tensor = _padded(padded, IGNORED)
        if several:
            return tensor.unsqueeze(1)
        return tensor

    def _classes(self, answers: Sequence[Any]) -> Tensor:
        """The classes of these answers, LongTensor[batch, 1]."""
        names = {name: number for number, name in self._config.id2label.items()}
        n = self._config.num_labels
        classes = []
        for answer in answers:
            number: Any = names.get(answer) if isinstance(answer, str) else answer
            if number not in range(n):
                raise ValueError(
                    f"{self.name} answers with a class, 0 to {n - 1} ({', '.join(names)}); got "
                    f"{answer!r}."
                )
            classes.append([int(number)])
        return torch.tensor(classes)

    def _check_classes(self) -> None:
        n, problem = self._config.num_labels, self._config.problem_type
        if n < 2 or problem not in (None, "single_label_classification"):
            raise ValueError(
                f"{self.name} has {n} outputs (problem_type={problem!r}), and no classes of which "
                "one is right."
            )
        if self._config.get_text_config().pad_token_id is None:
            raise ValueError(
                f"{self.name} finds the last token of a text by config.pad_token_id, which is not "
                "set: set it, or load the network with options={'pad_token_id': NUMBER}."
            )

    def _apart(self, prompts: Sequence[Text]) -> tuple[list[str], list[Any]]:
        """The texts, and the image of each; no images where no text has one."""
        images = [prompt["image"] for prompt in prompts if isinstance(prompt, Mapping)]
        if images and not hasattr(self.processor, "image_processor"):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) has no encoder for images: leave the "
                "image out, or take a network of kind=image_text with its processor."
            )
        if len(images) not in (0, len(prompts)):
            raise ValueError(
                f"{len(images)} of {len(prompts)} texts have an image: give one to each, or none."
            )
        # What is neither a text nor has one is a conversation.
        plain: Any = [item["text"] if isinstance(item, Mapping) else item for item in prompts]
        return [text if isinstance(text, str) else self.render(text) for text in plain], images

    def _tokenized(self, texts: Sequence[str], special_tokens: bool | None = None) -> list[Tokens]:
        """The tokens of each text."""
        continues = not (self.masked or self.encoder_decoder or self.classifies)
        tokens = []
        for row in self._tokenizer_rows(
            texts, return_offsets_mapping=True, return_special_tokens_mask=True
        ):
            ids, offsets = row["input_ids"], row["offset_mapping"]
            added = row["special_tokens_mask"]
            tokens.append(with_special_tokens(ids, offsets, added, continues, special_tokens))
        return tokens

    def _tokenizer_rows(self, texts: Sequence[str], **options: Any) -> list[dict[str, Any]]:
        try:
            return self._texts.of(self.tokenizer, texts, **options)
        # A tokenizer of whole words has no narrower error for a word that it does not know.
        except Exception as error:
            unknown = set(" ".join(texts).split()) - set(self.tokenizer.get_vocab())
            raise ValueError(f"{self.name} cannot read {sorted(unknown)[:5]}: {error}.") from error

    def answers_right(
        self,
        texts: Sequence[Text],
        answers: Sequence[Answer],
        *,
        batch_size: int = 64,
        logits: Callable[[dict[str, Any]], Tensor] | None = None,
    ) -> np.ndarray:
        """Whether each answer is, token by token, the argmax over the whole vocabulary: bool[n].

        Where several answers are right, one of them has to be the argmax.

        Arguments:
            batch_size: prompts a run.
            logits: batch → Tensor[batch, n_answer, vocab], or Tensor[batch, 1, classes]; by default
                the network's own.
        """
        encoded = self.encode(texts, answers=answers)
        right = torch.zeros(len(texts), dtype=torch.bool)
        lengths = encoded["attention_mask"].sum(1)
        # Prompts of about the same length share a batch, cut to its longest.
        for rows in progress(lengths.argsort(stable=True).split(batch_size), "Answering prompts"):
            batch = trimmed(at_rows(encoded, rows))
            with torch.no_grad():
                scores = (logits or self._logits)(batch)
            right[rows] = correct(scores.cpu(), batch["answer"])
        return right.numpy()

    def _logits(self, encoded: dict[str, Any]) -> Tensor:
        """The network's logits where the answer is read, Tensor[batch, n_answer, vocab]."""
        batch, answer_columns = with_answer(self.model, prepare(self.model, encoded))
        if "use_cache" in signature(self.model.forward).parameters:
            batch.kwargs["use_cache"] = False
        with head_at(self.model, answer_columns) as gathered:
            return logits_at(batch.through(self.model), answer_columns, gathered)


def _at(column: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """The entries of a column in some rows."""
    return [column[row] for row in rows]


def _one_a_text(places: Any, n: int, role: str) -> list[RolePlace]:
    if isinstance(places, Tensor):
        places = places.tolist()
    # The place of a single text may stand alone.
    listed = places if isinstance(places, Sequence) and not isinstance(places, str) else [places]
    if len(listed) != n:
        got = repr(places) if len(listed) == 1 else len(listed)
        raise ValueError(f"Role {role!r} needs one place for each of the {n} texts; got {got}.")
    return list(listed)


def _tokens_of_place(
    text: str, place: Any, offsets: Sequence[tuple[int, int]], role: str
) -> list[int]:
    if place is None:
        return []
    if isinstance(place, str) and isinstance(text, Conversation):
        place = text.span(place, role=role)
    if isinstance(place, str):
        return tokens_of_span(text, last_mention(text, place, role=role), offsets, role=role)
    if isinstance(place, slice):
        if place.step is not None:
            raise ValueError(f"Role {role!r}: a slice of characters has no step; got {place}.")
        start, stop = place.start or 0, len(text) if place.stop is None else place.stop
        return tokens_of_span(text, (start, stop), offsets, role=role)
    columns = range(len(offsets))
    tokens = []
    for number in place if isinstance(place, Sequence) else [place]:
        try:
            # Negative indices count from the end.
            tokens.append(columns[number])
        except IndexError:
            raise ValueError(
                f"Role {role!r}: token {number} is outside the prompt's {len(offsets)} tokens.\n"
                f"  {text}"
            ) from None
    return tokens


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    # At least one column: a role that is absent everywhere has a shape, too.
    width = max(1, *map(len, rows))
    filled = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long)
