"""A small transformer whose tokens are the words of a given vocabulary."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iit.network.language_model import LanguageModel

PAD = "<pad>"


def small_transformer(
    vocabulary: Sequence[str],
    n_layers: int = 2,
    n_heads: int = 4,
    width: int = 128,
    max_length: int = 64,
) -> LanguageModel:
    """An untrained transformer of Llama's kind, so that every component is a site.

    vocabulary: the words of its texts, which are separated by spaces or line breaks; one token
        each. Other words are an error.
    width: of the residual stream; the MLP's is four times that. max_length: the most words of a
        text and its answer.

    Raises ValueError for an empty vocabulary, and a width that the heads do not divide evenly.
    """
    words = list(dict.fromkeys(vocabulary))
    if not words:
        raise ValueError(
            "A small transformer needs the words of its texts; the vocabulary is empty."
        )
    if width % (2 * n_heads):
        raise ValueError(
            f"width={width} is no multiple of {2 * n_heads}: {n_heads} heads of even width each."
        )
    config = LlamaConfig(
        vocab_size=len(words) + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([PAD, *words])}, unk_token="<unknown>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=PAD)
    return LanguageModel(LlamaForCausalLM(config), fast, "transformer")
