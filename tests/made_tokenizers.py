"""Hand-made tokenizers of each kind, over a few words: what matters is how they treat spaces and
special tokens.
"""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

WORDS = ("When", "John", "and", "Mary", "left", "gave", "milk", "to", "New", "York")
SPECIAL = ("<unk>", "<s>", "</s>", "<mask>")


def _merged(space):
    """Byte-pair encoding that merges each word, with the space before it and without, from the
    left.
    """
    vocabulary = dict.fromkeys(
        [*SPECIAL, *"▁Ġ.,:!0123456789", *map(chr, range(65, 91)), *map(chr, range(97, 123))]
    )
    merges = {}
    for word in WORDS:
        for text in (space + word, word):
            for n in range(1, len(text)):
                merges[text[:n], text[n]] = None
                vocabulary[text[: n + 1]] = None
    return models.BPE(
        {token: i for i, token in enumerate(vocabulary)}, list(merges), unk_token="<unk>"
    )


def _template(text):
    return processors.TemplateProcessing(text, special_tokens=[("<s>", 1), ("</s>", 2)])


def _fast(core, mask="<mask>"):
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL[:3]])
    core.add_special_tokens([AddedToken(mask, lstrip=mask == "<mask>", special=True)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": mask}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **names
    )


def prepend(template=None):
    """Mistral, Mixtral, Phi-3: a normalizer puts a space mark before every text."""
    core = Tokenizer(_merged("▁"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    if template:
        core.post_processor = _template(template)
    return _fast(core)


def metaspace(template=None, scheme="always"):
    """Llama 2, T5, XLM-R: a pre-tokenizer puts a space mark before every text, unless one is there;
    Gemma never does.
    """
    core = Tokenizer(_merged("▁"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    if template:
        core.post_processor = _template(template)
    return _fast(core)


def byte_level(template=None):
    """GPT-2, Llama 3, SmolLM2: a space belongs to the word behind it."""
    core = Tokenizer(_merged("Ġ"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        core.post_processor = _template(template)
    return _fast(core)


def word_piece():
    """BERT: spaces are not tokens; [CLS] and [SEP] stand around."""
    pieces = [*SPECIAL[:3], "[MASK]", *(word.lower() for word in WORDS), ".", "##s"]
    core = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = _template("<s> $A </s>")
    return _fast(core, "[MASK]")


KINDS = {
    "mistral": lambda: prepend("<s> $A"),
    "mistral without bos": prepend,
    "mistral with eos": lambda: prepend("<s> $A </s>"),
    "llama 2": lambda: metaspace("<s> $A"),
    "llama 2 first": lambda: metaspace("<s> $A", "first"),
    "gemma": lambda: metaspace("<s> $A", "never"),
    "eos only": lambda: metaspace("$A </s>"),
    "gpt2": byte_level,
    "llama 3": lambda: byte_level("<s> $A"),
    "gpt2 with eos": lambda: byte_level("$A </s>"),
    "roberta, as a decoder": lambda: byte_level("<s> $A </s>"),
    "bert, as a decoder": word_piece,
}
