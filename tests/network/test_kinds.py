"""Networks of every kind: loaded by their configuration, and reached by pairs."""

import json
import random

import pytest
import torch
import transformers as t

import iit
from iit.alignment import one
from iit.data import Pairs
from tests.families import SIZES
from tests.made_tokenizers import byte_level, metaspace, word_piece

LABELS = {"num_labels": 3, "id2label": {0: "low", 1: "mid", 2: "high"}}
T5 = {"d_model": 16, "d_kv": 6, "num_layers": 2, "num_heads": 4, "d_ff": 24}
T5 |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}


def sizes(tokenizer, **more):
    return {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2} | more


NETWORKS = {
    "causal": (byte_level, lambda tok: t.LlamaForCausalLM(t.LlamaConfig(**sizes(tok)))),
    "masked": (word_piece, lambda tok: t.BertForMaskedLM(t.BertConfig(**sizes(tok)))),
    "encoder_decoder": (
        lambda: metaspace("$A </s>"),
        lambda tok: t.T5ForConditionalGeneration(t.T5Config(vocab_size=len(tok), **T5)),
    ),
    "sequence_classifier": (
        word_piece,
        lambda tok: t.BertForSequenceClassification(t.BertConfig(**sizes(tok, **LABELS))),
    ),
}
CLASSIFIERS = {
    "bert": NETWORKS["sequence_classifier"],
    "llama": (
        byte_level,
        lambda tok: t.LlamaForSequenceClassification(t.LlamaConfig(**sizes(tok, **LABELS))),
    ),
    "t5": (
        lambda: metaspace("$A </s>"),
        lambda tok: t.T5ForSequenceClassification(t.T5Config(vocab_size=len(tok), **T5, **LABELS)),
    ),
}


def quick(names, *chosen):
    """The names as parameters; all but the chosen ones are long."""
    return [pytest.param(name, marks=[] if name in chosen else pytest.mark.long) for name in names]


def drawn(maker):
    tokenizer = maker[0]()
    torch.manual_seed(0)
    model = maker[1](tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model, tokenizer


@pytest.fixture
def saved(tmp_path):
    def save(maker, **changes):
        model, tokenizer = drawn(maker)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for key, value in changes.items():
            config[key] = value
            if value is None:
                del config[key]
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path), model

    return save


# A masked language model would come first for this model type.
@pytest.mark.parametrize("kind", quick(NETWORKS, "sequence_classifier"))
def test_the_kind_is_what_the_architectures_say(saved, kind):
    folder, model = saved(NETWORKS[kind])
    for options in ({}, {"kind": kind}):
        lm = iit.load_network(folder, **options)
        assert type(lm.model) is type(model)
        assert lm.fingerprint() == iit.network.fingerprint(model)


@pytest.mark.parametrize("kind", quick(["causal", "masked", "encoder_decoder"], "causal"))
def test_without_architectures_the_model_type_says_it(saved, kind):
    folder, model = saved(NETWORKS[kind], architectures=None)
    assert type(iit.load_network(folder).model) is type(model)


def test_a_kind_that_cannot_be(saved):
    folder, _ = saved(NETWORKS["causal"])
    with pytest.raises(ValueError, match="kind 'chat' is none of auto, image_text, encoder_dec"):
        iit.load_network(folder, kind="chat")
    said = "kind='masked'.* model type 'llama', .* the kinds causal, sequence_classifier"
    with pytest.raises(ValueError, match=said):
        iit.load_network(folder, kind="masked")
    with pytest.raises(ValueError, match=r"lack 1 of its tensors: score\.weight"):
        iit.load_network(folder, kind="sequence_classifier")
    iit.network.save_network(iit.network.mlp(4, 2), f"{folder}/mlp")
    with pytest.raises(ValueError, match="kind='causal' is for networks of transformers"):
        iit.load_network(f"{folder}/mlp", kind="causal")


WORDS = ("John", "Mary", "York", "milk")
TEXTS = {
    "causal": "{} and {} left",
    "masked": "{} and {} left [MASK]",
    "encoder_decoder": "{} and {} left",
    "sequence_classifier": "{} and {} left",
}


def rows(kind, label):
    random.seed(0)
    lines = []
    for number, split in enumerate(["train"] * 8 + ["validation"] * 4 + ["test"] * 4):
        line = {"split": split, "label": label(number), "base_answer": label(number + 1)}
        for side in ("base", "source"):
            first = random.choice(WORDS)
            line[side] = TEXTS[kind].format(first, random.choice(WORDS))
            line[f"{side}_roles"] = {"name": [0, len(first)]}
        lines.append(line)
    return lines


ANSWERS = {
    "causal": lambda n: (" to", " gave")[n % 2],
    "masked": lambda n: ("to", "gave")[n % 2],
    "encoder_decoder": lambda n: ("to", "gave")[n % 2],
    "sequence_classifier": lambda n: n % 3,
}


@pytest.mark.parametrize("kind", quick(NETWORKS, "sequence_classifier"))
def test_pairs_reach_each_kind_from_a_file_to_a_fit(kind, tmp_path):
    lm = iit.LanguageModel(*drawn(NETWORKS[kind]))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(kind, ANSWERS[kind]))))
    # Without a network nobody is asked: every pair stays.
    pairs = Pairs.load(path, variable="name")
    assert pairs.dataset["label"] == [ANSWERS[kind](n) for n in range(16)]
    site = iit.Site("block_output", layer=0, position="name_last")
    if kind == "encoder_decoder":
        site = iit.Site(module="encoder.block.0", position="name_last")
    alignment = one(lm, "name", site, lambda width: iit.LowRankRotatedSpaceIntervention(width, 2))
    fitted = iit.fit(alignment, pairs, max_epochs=1)
    assert 0 <= fitted.value <= 1
    rows_of = iit.evaluate(alignment, pairs, split="validation", trust="quick")
    assert {row.n for row in rows_of if row.metric == "iia" and row.subset == "all"} == {4}


@pytest.mark.parametrize("family", quick(CLASSIFIERS, "llama"))
def test_a_class_is_the_answer_of_a_sequence_classifier(family):
    model, tokenizer = drawn(CLASSIFIERS[family])
    lm = iit.LanguageModel(model, tokenizer)
    texts = ["When John and Mary left", "Mary gave milk", "to New York"]
    batch = lm.encode(texts, answers=[2, "low", "mid"])
    assert batch["answer"].tolist() == [[2], [0], [1]]
    # One text at a time: no padding can be misread.
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected.append(model(input_ids=ids).logits)
    edited = iit.IntervenedModel(lm, {})
    logits = edited.answer_logits(batch)
    assert logits.shape == (3, 1, 3)
    torch.testing.assert_close(logits[:, 0], torch.cat(expected), atol=1e-5, rtol=1e-5)
    best = torch.cat(expected).argmax(1).tolist()
    assert lm.answers_right(texts, best).all()
    assert not lm.answers_right(texts, [(number + 1) % 3 for number in best]).any()


def test_an_edit_of_a_sequence_classifier_is_that_of_a_raw_hook():
    model, tokenizer = drawn(CLASSIFIERS["llama"])
    lm = iit.LanguageModel(model, tokenizer)
    base, source = lm.encode(["When John left", "Mary gave milk to"]), lm.encode(["to", "New York"])
    site = iit.Site("block_output", layer=0, position="last")
    edited = iit.IntervenedModel(lm, {site: iit.VanillaIntervention()})
    edited.store = iit.intervened.ActivationStore(lm.model)
    columns = base["attention_mask"].sum(1) - 1
    value = iit.capture(lm, source, [site])[site][:, 0]

    def hook(module, args, output):
        output = output.clone()
        output[torch.arange(2), columns] = value
        return output

    handle = model.model.layers[0].register_forward_hook(hook)
    inputs = {name: base[name] for name in ("input_ids", "attention_mask")}
    expected = model(**inputs).logits
    handle.remove()
    torch.testing.assert_close(
        edited.answer_logits(base, source)[:, 0], expected, atol=1e-5, rtol=1e-5
    )
    assert edited.n_columns(base) is None, "it is never resumed"


@pytest.mark.parametrize("answer", [3, -1, None, 0.5, "huge", ["low"]])
def test_what_is_no_class(answer):
    lm = iit.LanguageModel(*drawn(CLASSIFIERS["bert"]))
    with pytest.raises(ValueError, match=r"answers with a class, 0 to 2 \(low, mid, high\); got"):
        lm.encode(["John left"], answers=[answer])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_labels": 1}, "has 1 outputs"),
        ({"problem_type": "multi_label_classification"}, "has 3 outputs .*'multi_label"),
        ({"pad_token_id": None}, r"by config\.pad_token_id, which is not set"),
    ],
)
def test_classifiers_whose_class_would_be_misread(changes, said):
    tokenizer = byte_level()
    config = t.LlamaConfig(**sizes(tokenizer, **{**LABELS, **changes}))
    if "num_labels" in changes:
        config.num_labels = 1
    with pytest.raises(ValueError, match=said):
        iit.LanguageModel(t.LlamaForSequenceClassification(config), tokenizer)


def test_a_class_beyond_the_classes_is_found_before_training(tmp_path):
    lm = iit.LanguageModel(*drawn(CLASSIFIERS["bert"]))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows("causal", lambda n: n % 4))))
    with pytest.raises(ValueError, match="answers with a class, 0 to 2"):
        Pairs.load(path, lm)


class OwnModule(torch.nn.Module):
    """No transformers model, no config."""

    def __init__(self, n_tokens):
        super().__init__()
        self.embedding = torch.nn.Embedding(n_tokens, 8)
        self.mixer = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, n_tokens)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        return self.head(self.mixer(hidden.cumsum(1)).tanh())


@pytest.mark.filterwarnings("ignore:Answers lack the space")
def test_a_module_of_ones_own_is_wrapped_as_it_is(tmp_path):
    tokenizer = byte_level()
    torch.manual_seed(0)
    module = OwnModule(len(tokenizer))
    lm = iit.LanguageModel(module, tokenizer)
    assert (lm.name, lm.model, lm.dtype) == ("OwnModule", module, torch.float32)
    batch = lm.encode(["John left", "When Mary gave milk"])
    logits = module(batch["input_ids"], batch["attention_mask"])
    best = logits[[0, 1], batch["attention_mask"].sum(1) - 1].argmax(-1)
    words = [tokenizer.decode(int(token)) for token in best]
    expected = (lm.encode(["John left"] * 2, answers=words)["answer"][:, 0] == best).tolist()
    assert lm.answers_right(["John left", "When Mary gave milk"], words).tolist() == expected
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows("causal", ANSWERS["causal"]))))
    site = iit.Site(module="mixer", position="name_last")
    alignment = one(lm, "name", site, lambda width: iit.LowRankRotatedSpaceIntervention(width, 2))
    assert 0 <= iit.fit(alignment, Pairs.load(path, variable="name"), max_epochs=1).value <= 1


def test_only_what_loads_again_is_saved(tmp_path):
    tokenizer = byte_level()
    lm = iit.LanguageModel(OwnModule(len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match=r"Only models of transformers.*this is OwnModule"):
        iit.network.save_network(lm, tmp_path)
    assert not list(tmp_path.iterdir())
