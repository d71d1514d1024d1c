"""Images beside texts: the tokens that stand for an image, and what its encoder gets."""

from collections.abc import Sequence
from io import BytesIO
from itertools import takewhile
from operator import eq
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from iit.network.tokens import Tokens


def with_images(
    processor: Any, texts: Sequence[str], images: Sequence[Any], tokens: Sequence[Tokens]
) -> tuple[list[Tokens], dict[str, Tensor]]:
    """Put the tokens of each image in place of the placeholder in its text.

    Arguments:
        processor: the network's processor, of transformers.
        images: one for each text: a picture, its file, or the bytes of one.
        tokens: of the texts, with placeholders.

    Returns:
        The tokens with images, where each token of an image has the characters of the placeholder;
        and {input of the network: Tensor[batch, …]}, what the processor gives beside the tokens.

    Raises ValueError for a text that does not hold the placeholder once, and for a processor that
    does not give one row for each image.
    """
    name = type(processor).__name__
    rows: list[Tokens] = []
    columns: dict[str, list[Tensor]] = {}
    for text, image, row in zip(texts, images, tokens, strict=True):
        if isinstance(image, bytes):
            image = BytesIO(image)
        if not isinstance(image, Image.Image):
            image = Image.open(image).convert("RGB")
        inputs = processor(
            text=[text], images=[image], return_tensors="pt", add_special_tokens=False
        )
        ids, plain = inputs.pop("input_ids")[0].tolist(), row.text_ids
        del inputs["attention_mask"]
        # Both are the same up to the placeholder, and behind it. An image's tokens may begin and
        # end with the placeholder itself, so the two parts may overlap in it.
        before = _n_equal(plain, ids)
        behind = len(plain) - _n_equal(plain[::-1], ids[::-1])
        if abs(behind - before) != 1:
            raise ValueError(
                f"The placeholder of an image ({getattr(processor, 'image_token', None)!r} of "
                f"{name}) has to stand in its text once, apart from other tokens: {text!r}."
            )
        at = row.start + min(before, behind)
        n_more = len(ids) - len(plain)
        offsets = [*row.offsets[:at], *[row.offsets[at]] * n_more, *row.offsets[at:]]
        ids = row.ids[: row.start] + ids + row.ids[row.stop :]
        rows.append(Tokens(ids, offsets, row.start, row.stop + n_more))
        for key, value in inputs.items():
            if len(value) != 1:
                raise ValueError(
                    f"{name} gives {len(value)} rows of {key} for one image; a batch of pairs "
                    "needs one row for each."
                )
            if key.endswith("token_type_ids"):
                value = pad(value, (row.start, len(row.ids) - row.stop))
            columns.setdefault(key, []).append(value[0])
    # Only what has an entry for each token differs in length.
    return rows, {key: pad_sequence(values, batch_first=True) for key, values in columns.items()}


def _n_equal(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens are the same from the start on."""
    return len(list(takewhile(bool, map(eq, ids, others))))
