"""Encoders beside decoders, and masked language models: whose tokens a position counts, and where
an answer is read.
"""

import pytest
import torch
import transformers as t

import iit
from iit import Site
from iit.network import LanguageModel
from tests.families import SIZES, V, prompts
from tests.made_tokenizers import byte_level, metaspace, word_piece

SMALL = {"d_model": 16, "vocab_size": V, "pad_token_id": 0, "decoder_start_token_id": 0}
LAYERS = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
BART = {
    **SMALL,
    **LAYERS,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
T5 = {**SMALL, "d_kv": 6, "num_layers": 2, "num_heads": 4, "d_ff": 24, "eos_token_id": 2}


def pair_of_berts(**sizes):
    encoder, decoder = (
        t.BertConfig(**SIZES | sizes | role)
        for role in ({}, {"is_decoder": True, "add_cross_attention": True})
    )
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.pad_token_id = 0
    return t.EncoderDecoderModel(config)


NETWORKS = {
    "t5": (
        lambda **sizes: t.T5ForConditionalGeneration(t.T5Config(**T5 | sizes)),
        "encoder.block.0",
        "decoder.block.0",
    ),
    "bart": (
        lambda **sizes: t.BartForConditionalGeneration(t.BartConfig(**BART | sizes)),
        "model.encoder.layers.0",
        "model.decoder.layers.0",
    ),
    "pegasus": (
        lambda **sizes: t.PegasusForConditionalGeneration(t.PegasusConfig(**BART | sizes)),
        "model.encoder.layers.0",
        "model.decoder.layers.0",
    ),
    "marian": (
        lambda **sizes: t.MarianMTModel(t.MarianConfig(**BART | sizes)),
        "model.encoder.layers.0",
        "model.decoder.layers.0",
    ),
    "m2m": (
        lambda **sizes: t.M2M100ForConditionalGeneration(t.M2M100Config(**BART | sizes)),
        "model.encoder.layers.0",
        "model.decoder.layers.0",
    ),
    "two berts": (pair_of_berts, "encoder.encoder.layer.0", "decoder.bert.encoder.layer.0"),
}


def make(kind, **sizes):
    torch.manual_seed(0)
    network = NETWORKS[kind][0](**sizes).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3)
    return network


def decoder_inputs(lengths, seed=5):
    batch = prompts(lengths, seed)
    return {
        "decoder_input_ids": batch["input_ids"],
        "decoder_attention_mask": batch["attention_mask"],
    }


def hooked(network, path, edit, batch, side="output"):
    """The logits where `edit` changes the module's output in place, and what the module gave."""
    seen = []

    def hook(_module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        seen.append(first.clone())
        new = edit(first.clone())
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = network.get_submodule(path).register_forward_hook(hook)
    logits = network(**batch).logits
    handle.remove()
    return logits, seen[0]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("prompt_lengths", "decoder_lengths"),
    [((7, 5), (7, 7)), ((7, 5), (5, 7)), ((5, 5), (9, 9)), ((7, 3), (4, 2))],
)
def test_a_decoders_positions_are_its_own(kind, prompt_lengths, decoder_lengths):
    network, path = make(kind), NETWORKS[kind][2]
    batch = {**prompts(prompt_lengths), **decoder_inputs(decoder_lengths)}
    source = {**prompts(prompt_lengths, 8), **decoder_inputs(decoder_lengths, 9)}
    _, there = hooked(network, path, lambda h: h, source)
    acts = iit.capture(
        network,
        batch,
        sites := [Site(module=path), Site(module=path, position=-1), Site(module=path, position=0)],
    )
    _, own = hooked(network, path, lambda h: h, batch)
    for row, n in enumerate(decoder_lengths):
        assert torch.equal(acts[sites[0]][row, :n], own[row, :n])
        assert torch.equal(acts[sites[1]][row, 0], own[row, n - 1])
        assert torch.equal(acts[sites[2]][row, 0], own[row, 0])

    def everywhere(h):
        for row, n in enumerate(decoder_lengths):
            h[row, :n] = there[row, :n]
        return h

    def at_last(h):
        for row, n in enumerate(decoder_lengths):
            h[row, n - 1] = there[row, n - 1]
        return h

    for site, edit in ((sites[0], everywhere), (sites[1], at_last)):
        edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
        expected, _ = hooked(network, path, edit, batch)
        found = edited(batch, source).logits
        for row, n in enumerate(decoder_lengths):
            torch.testing.assert_close(found[row, :n], expected[row, :n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_encoders_positions_are_the_prompts(kind):
    network, path = make(kind), NETWORKS[kind][1]
    batch = {**prompts((7, 5)), **decoder_inputs((9, 9)), "positions": {"s": torch.tensor([2, 4])}}
    inputs = {key: value for key, value in batch.items() if key != "positions"}
    acts = iit.capture(network, batch, sites := [Site(module=path, position=p) for p in ("s", -1)])
    _, own = hooked(network, path, lambda h: h, inputs)
    assert torch.equal(acts[sites[0]][:, 0], torch.stack([own[0, 2], own[1, 4]]))
    assert torch.equal(acts[sites[1]][:, 0], torch.stack([own[0, 6], own[1, 4]]))


@pytest.mark.parametrize(
    ("kind", "path", "decoder"),
    [
        ("t5", "decoder.block.0.layer.1.EncDecAttention.k", False),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.v", False),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.q", True),
        ("t5", "decoder.block.0.layer.0.SelfAttention.k", True),
        ("t5", "encoder.block.0.layer.0.SelfAttention.k", False),
        ("t5", "lm_head", True),
        ("bart", "model.decoder.layers.0.encoder_attn.k_proj", False),
        ("bart", "model.decoder.layers.0.encoder_attn.q_proj", True),
        ("bart", "model.decoder.layers.0.self_attn.v_proj", True),
        ("bart", "lm_head", True),
        ("two berts", "decoder.bert.encoder.layer.0.crossattention.self.value", False),
        ("two berts", "decoder.bert.encoder.layer.0.attention.self.key", True),
        ("two berts", "decoder.cls", True),
        ("two berts", "encoder.embeddings", False),
    ],
)
def test_each_module_counts_the_tokens_that_it_sees(kind, path, decoder):
    network = make(kind)
    batch = {**prompts((6, 4)), **decoder_inputs((3, 6))}
    _, own = hooked(network, path, lambda h: h, batch)
    found = iit.capture(network, batch, site := Site(module=path, position=-1))[site]
    last = (2, 5) if decoder else (5, 3)
    assert torch.equal(found[:, 0], torch.stack([own[row, n] for row, n in enumerate(last)]))


def test_a_role_is_no_place_of_a_decoder():
    batch = {**prompts((7, 5)), **decoder_inputs((7, 7)), "positions": {"s": torch.tensor([2, 4])}}
    for role in ("s", "last"):
        with pytest.raises(ValueError, match="sees the decoder's tokens"):
            iit.capture(make("t5"), batch, Site(module="decoder.block.0", position=role))


def test_decoder_tokens_are_padded_on_the_right():
    batch = {
        **prompts((7, 5)),
        **{key: rows.flip(1) for key, rows in decoder_inputs((7, 5)).items()},
    }
    with pytest.raises(ValueError, match="decoder_attention_mask says otherwise"):
        iit.capture(make("bart"), batch, Site(module="model.decoder"))


def test_decoder_tokens_that_the_network_makes_itself():
    network, batch, site = make("bart"), prompts((7, 5)), Site(module="model.decoder.layers.0")
    _, own = hooked(network, site.module, lambda h: h, batch)
    assert torch.equal(iit.capture(network, batch, site)[site], own)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_encoder_decoder_answers_in_its_decoders_tokens(kind):
    network = make(kind)
    batch, answer = (
        {**prompts((7, 5)), **decoder_inputs((3, 2))},
        torch.tensor([[11, 12, 13], [14, -100, -100]]),
    )
    edited = iit.IntervenedModel(network, {Site(module=NETWORKS[kind][1]): iit.ZeroIntervention()})
    found = edited.answer_logits({**batch, "answer": answer})
    for row, (n, tokens) in enumerate(((3, [11, 12, 13]), (2, [14]))):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        alone["decoder_input_ids"] = torch.cat(
            [alone["decoder_input_ids"][:, :n], torch.tensor([tokens[:-1]]).long()], 1
        )
        alone.pop("decoder_attention_mask")
        length = (7, 5)[row]

        def zero(h, length=length):
            h[:, :length] = 0
            return h

        expected, _ = hooked(network, NETWORKS[kind][1], zero, alone)
        torch.testing.assert_close(
            found[row, : len(tokens)],
            expected[0, n - 1 : n - 1 + len(tokens)],
            atol=2e-5,
            rtol=2e-5,
        )


def test_answers_of_t5_from_texts():
    tokenizer = metaspace("$A </s>")
    lm = LanguageModel(make("t5", vocab_size=len(tokenizer)), tokenizer)
    texts = ["When John and Mary left", "John gave milk to"]
    batch = lm.encode(texts, answers=[" Mary left", "John"])
    ended = [
        tokenizer.convert_ids_to_tokens(row.tolist())[int(n) - 1]
        for row, n in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)
    ]
    assert ended == ["</s>", "</s>"], "the encoder's text ends"
    last = batch["positions"]["last"].flatten().tolist()
    assert tokenizer.convert_ids_to_tokens(
        [int(row[i]) for row, i in zip(batch["input_ids"], last, strict=True)]
    ) == [
        "▁left",
        "▁to",
    ]
    assert [
        tokenizer.convert_ids_to_tokens([i for i in row.tolist() if i >= 0])
        for row in batch["answer"]
    ] == [
        ["▁Mary", "▁left"],
        ["▁John"],
    ]
    assert batch["decoder_input_ids"].tolist() == [[0], [0]]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    best = lm.model(**inputs).logits[:, -1].argmax(-1)
    words = [tokenizer.convert_ids_to_tokens(int(i)) for i in best]
    right = lm.answers_right(texts, [word.replace("▁", " ") for word in words]).tolist()
    alignment = iit.Alignment(
        lm,
        {"s": iit.Edit(Site("block_output", layer=0, position="last"), iit.VanillaIntervention())},
    )
    answers = [word.replace("▁", " ") for word in words]
    expected = (lm.encode(texts, answers=answers)["answer"][:, 0] == best).tolist()
    assert right == expected == alignment.answers_right(texts, answers).tolist()


def test_a_forced_first_token_stands_before_the_answer():
    tokenizer = byte_level("<s> $A </s>")
    network = make("bart", vocab_size=len(tokenizer))
    network.generation_config.forced_bos_token_id = 1
    assert LanguageModel(network, tokenizer).encode(["to", "left"])[
        "decoder_input_ids"
    ].tolist() == [[0, 1], [0, 1]]


def test_a_decoder_begins_as_transformers_would_or_has_to_say_how():
    tokenizer = byte_level("<s> $A </s>")
    network = make("bart", vocab_size=len(tokenizer))
    network.generation_config.decoder_start_token_id = None
    network.generation_config.bos_token_id = 1
    lm = LanguageModel(network, tokenizer)
    assert lm.encode(["to"])["decoder_input_ids"].tolist() == [[1]]
    network.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="does not say how its decoder's text begins"):
        lm.encode(["to"])


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        ("t5", "decoder"),
        ("bart", "model.decoder"),
        ("two berts", "decoder"),
        ("two berts", "decoder.bert"),
    ],
)
def test_what_enters_a_decoder_are_the_encoders_states_also_where_both_are_equally_long(
    kind, decoder
):
    network = make(kind)
    batch = {**prompts(), "decoder_input_ids": prompts((7, 7), seed=2)["input_ids"]}
    states = network.get_encoder()(**prompts()).last_hidden_state
    site = Site(module=decoder, side="input", position=-1)
    read = iit.capture(network, batch, site)[site]
    torch.testing.assert_close(read[:, 0], states[[0, 1], [6, 4]])


MASKED = {
    "bert": (word_piece, lambda n: t.BertForMaskedLM(t.BertConfig(**SIZES | {"vocab_size": n}))),
    "distilbert": (
        word_piece,
        lambda n: t.DistilBertForMaskedLM(
            t.DistilBertConfig(vocab_size=n, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
        ),
    ),
    "electra": (
        word_piece,
        lambda n: t.ElectraForMaskedLM(
            t.ElectraConfig(**SIZES | {"vocab_size": n}, embedding_size=8)
        ),
    ),
    "roberta": (
        lambda: byte_level("<s> $A </s>"),
        lambda n: t.RobertaForMaskedLM(t.RobertaConfig(**SIZES | {"vocab_size": n})),
    ),
    "modernbert": (
        lambda: byte_level("<s> $A </s>"),
        lambda n: t.ModernBertForMaskedLM(
            t.ModernBertConfig(**SIZES | {"vocab_size": n, "cls_token_id": 1, "sep_token_id": 2})
        ),
    ),
    "xlm-r": (
        lambda: metaspace("<s> $A </s>"),
        lambda n: t.XLMRobertaForMaskedLM(t.XLMRobertaConfig(**SIZES | {"vocab_size": n})),
    ),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_language_model_is_read_at_its_mask(kind):
    tokenizer, maker = MASKED[kind][0](), MASKED[kind][1]
    torch.manual_seed(0)
    lm = LanguageModel(maker(len(tokenizer)), tokenizer)
    mask = tokenizer.mask_token
    texts = [f"When John and {mask} left", f"{mask} gave milk to Mary", f"to New {mask}."]
    answers = ["Mary", " John", "York"]
    batch = lm.encode(texts, answers=answers)
    places = [int(row.tolist().index(tokenizer.mask_token_id)) for row in batch["input_ids"]]
    assert batch["positions"]["mask"].flatten().tolist() == places
    names = tokenizer.convert_ids_to_tokens(batch["answer"].flatten().tolist())
    assert [name.strip("▁Ġ").lower() for name in names] == ["mary", "john", "york"]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = lm.model(**inputs).logits
    expected = torch.stack([logits[row, place] for row, place in enumerate(places)]).unsqueeze(1)
    edited = iit.IntervenedModel(lm, {})
    torch.testing.assert_close(edited.answer_logits(batch), expected, atol=1e-5, rtol=1e-5)
    wanted = (expected.argmax(-1) == batch["answer"]).flatten().tolist()
    assert lm.answers_right(texts, answers).tolist() == wanted
    ends = tokenizer.convert_ids_to_tokens(
        [
            int(row[int(n) - 1])
            for row, n in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)
        ]
    )
    assert set(ends) == {"</s>"}
    assert (batch["positions"]["last"].flatten() == batch["attention_mask"].sum(1) - 2).all()


def test_several_masks_are_several_tokens():
    tokenizer = word_piece()
    lm = LanguageModel(MASKED["bert"][1](len(tokenizer)), tokenizer)
    batch = lm.encode(["to [MASK] [MASK]", "[MASK] left"], answers=["New York", "Mary"])
    assert batch["positions"]["mask"].tolist() == [[2, 3], [1, -100]]
    logits = lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = iit.IntervenedModel(lm, {}).answer_logits(batch)
    torch.testing.assert_close(found[0], logits[0, 2:4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, 0], logits[1, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "answer", "said"),
    [
        ("Mary left", "John", r"put \[MASK\] into every text"),
        ("to [MASK]", "New York", "one for each token of the answer"),
        ("to [MASK] [MASK]", "Mary", "one for each token of the answer"),
    ],
)
def test_masks_that_do_not_fit(text, answer, said):
    tokenizer = word_piece()
    lm = LanguageModel(MASKED["bert"][1](len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match=said):
        lm.answers_right([text], [answer])


def test_a_batch_without_masks_has_no_answer():
    network = MASKED["bert"][1](V).eval()
    edited = iit.IntervenedModel(network, {})
    with pytest.raises(ValueError, match="is read at its masks"):
        edited.answer_logits({**prompts((5, 5)), "answer": torch.tensor([7, 8])})
    # Where no answer is asked for, it is the last token that is read.
    batch = prompts((5, 5))
    with torch.no_grad():
        expected = network(**batch).logits[:, -1:]
    torch.testing.assert_close(edited.answer_logits(batch), expected, atol=1e-5, rtol=1e-5)


def test_the_prompt_whose_masks_do_not_fit_is_named():
    edited = iit.IntervenedModel(MASKED["bert"][1](V).eval(), {})
    batch = prompts((5, 5, 5))
    answer = torch.tensor([[7, 8], [7, -100], [7, -100]])
    fitting = {"mask": torch.tensor([[1, 2], [1, -100], [1, -100]])}
    assert edited.answer_logits({**batch, "positions": fitting, "answer": answer}).shape == (
        3,
        2,
        V,
    )
    # A column in which nobody has a mask changes nothing.
    wide = {"mask": torch.tensor([[1, 2, -100], [1, -100, -100], [1, -100, -100]])}
    assert edited.answer_logits({**batch, "positions": wide, "answer": answer}).shape == (3, 2, V)
    for masks in (
        [[1, 2], [1, -100], [1, 2]],
        [[1, 2], [1, -100], [-100, -100]],
        [[1, 2, -100], [1, -100, -100], [1, 2, 3]],
    ):
        with pytest.raises(ValueError, match=r"^Prompt 2: .* is read at its masks"):
            edited.answer_logits(
                {**batch, "positions": {"mask": torch.tensor(masks)}, "answer": answer}
            )
    with pytest.raises(ValueError, match=r"^Prompt 1: .* is read at its masks"):
        edited.answer_logits({**batch, "positions": {"mask": torch.tensor([[1], [-100], [-100]])}})


class Wraps(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
    ):
        given = {
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, **given)


def test_a_wrapped_encoder_decoder_counts_as_the_bare_one():
    network = make("t5")
    batch = {**prompts((7, 5)), **decoder_inputs((7, 7)), "answer": torch.tensor([9, 8])}
    site = Site(module="decoder.block.0", position=-1)
    wrapped = Site(module="inner.decoder.block.0", position=-1)
    seen = iit.capture(Wraps(network), batch, wrapped)[wrapped]
    torch.testing.assert_close(seen, iit.capture(network, batch, site)[site])
    logits = iit.IntervenedModel(Wraps(network), {}).answer_logits(batch)
    torch.testing.assert_close(logits, iit.IntervenedModel(network, {}).answer_logits(batch))


class Named(t.BertForMaskedLM):
    """A masked language model under a name of one's own."""


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: Wraps(Wraps(network))])
def test_a_masked_language_model_is_known_by_its_kind(wrap):
    network = wrap(Named(t.BertConfig(**SIZES))).eval()
    with pytest.raises(ValueError, match="is read at its masks"):
        iit.IntervenedModel(network, {}).answer_logits(
            {**prompts((5, 5)), "answer": torch.tensor([7, 8])}
        )


def test_the_space_before_an_answer_is_no_part_of_a_decoders_text():
    lm = LanguageModel(make("bart", vocab_size=200), byte_level("<s> $A </s>"))
    answers = lm.encode(["When John left", "When John left"], answers=[" Mary", "Mary"])["answer"]
    assert answers[0].tolist() == answers[1].tolist()


def test_an_encoder_decoder_without_a_generating_head_is_encoded():
    bart = t.BartModel(t.BartConfig(**BART | {"vocab_size": 200})).eval()
    batch = LanguageModel(bart, byte_level("<s> $A </s>")).encode(["When John left"])
    assert batch["decoder_input_ids"].tolist() == [[0]]
