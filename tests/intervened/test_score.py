"""What an edited network writes equals a loop with raw hooks, and is compared as it says."""

import re

import numpy as np
import pytest
import torch

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation import outcomes
from iit.evaluation.outcomes import asking
from iit.network import equality_by_hand
from iit.result import Arm, log_probability, where
from iit.tasks import equality, ioi
from tests.oracles import raw_hook

SITE = iit.Site("block_output", layer=0, position="s2")
NEW = 4
CONTAINS = iit.Score("generated", "contains", NEW)


def starts(text, pair):
    """A comparison of one's own."""
    return text.startswith(pair["base"][:1])


HERE = f"{__name__}.starts"


@pytest.mark.parametrize(
    ("compare", "text", "label", "right"),
    [
        ("exact", " Mary\n", " Mary", True),
        ("exact", " Mary.", " Mary", False),
        ("exact", "Mary…", " Mary", False),
        ("exact", "", "", False),
        ("contains", "any text", [], False),
        ("exact", "Bob", [" Ann Lee", " Bob"], True),
        ("contains", "It was **Mary**.", " Mary", True),
        ("contains", "It was Mary", [" New York", " Mary"], True),
        ("contains", "in New York City", [" New York", " Mary"], True),
        ("contains", "It was Maryam", " Mary", False),
        ("contains", "mary", " Mary", False),
        ("contains", " \n", " Mary", False),
        ("contains", "a+b", " a+b", True),
        ("contains", "aab", " a+b", False),
        (r"answer is {label}\b", "The answer is Mary!", " Mary", True),
        (r"(?i)is {label}$", "it IS mary", " Mary", True),
        (r"is {label}{{0}}$", "is Mary", " Mary", False),
        (r"is {label}", "is a.c", " a.c", True),
        (r"is {label}", "is abc", " a.c", False),
        (r"^(?!{label})", "", " Mary", False),
        (HERE, "B is written", " Mary", True),
        (HERE, "C is written", " Mary", False),
        (HERE, "", " Mary", False),
    ],
)
def test_comparisons(compare, text, label, right):
    score = iit.Score("generated", compare)
    assert score.is_right(text, {"base": "B", "label": label}) is right


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "beam"},
        {"compare": "similar"},
        {"compare": "iit.nothing"},
        {"compare": "json"},
        {"compare": "({label}"},
        {"max_new_tokens": 0},
    ],
)
def test_what_no_score_is(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        iit.Score(**{"kind": "generated"} | options)


@pytest.fixture(scope="module")
def claim(toy):
    torch.manual_seed(0)
    vanilla = iit.VanillaIntervention()
    return iit.Alignment(toy[0], {"subject_position": iit.Edit(SITE, vanilla)})


def by_hand(network, base, source=None):
    """Greedy search on one prompt, whole sequence at every step, the source's vector put in."""
    model, ends = network.model, {network.tokenizer.eos_token_id}
    ends.add(model.generation_config.eos_token_id)

    def ids_and_column(text, role):
        batch = network.encode([text], positions={"s2": [slice(*role)]})
        return batch["input_ids"], int(batch["positions"]["s2"][0, 0])

    ids, column = ids_and_column(*base)
    kept, n = [], ids.shape[1]
    if source is not None:
        source_ids, source_column = ids_and_column(*source)
        with raw_hook(model, "llama", "block_output", 0, None, lambda h: kept.append(h) or h):
            model(input_ids=source_ids, use_cache=False)

    def edit(h):
        h = h.clone()
        if kept:
            h[:, column] = kept[0][0, source_column]
        return h

    hook = raw_hook(model, "llama", "block_output", 0, None, edit)
    with hook, torch.no_grad():
        for _ in range(NEW):
            token = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            if int(token) in ends:
                break
            ids = torch.cat([ids, token], 1)
    return network.tokenizer.decode(ids[0, n:], skip_special_tokens=True)


def test_texts_are_those_of_a_loop_whatever_the_batch(toy, claim):
    network, pairs = toy
    table = pairs.split("test")
    encoded = EncodedPairs(table, pairs.variables, network)
    for size in (1, 3, 64):
        edited = outcomes(claim, encoded, batch_size=size, score=CONTAINS)
        alone = outcomes(claim, encoded, batch_size=size, edited=False, score=CONTAINS)
        for row, pair in enumerate(table):
            base = pair["base"], pair["base_roles"]["s2"]
            source = pair["source"], pair["source_roles"]["s2"]
            assert edited.texts[row] == by_hand(network, base, source)
            assert alone.texts[row] == by_hand(network, base)
            assert edited.scored[row] == CONTAINS.is_right(edited.texts[row], pair)
    assert (edited.texts != alone.texts).any()
    tokens = outcomes(claim, encoded)
    assert (tokens.right[None] == edited.right[None]).all()
    assert (tokens.scored == tokens.right[None]).all()


def test_a_text_without_an_end_is_not_the_label_alone(toy):
    network = toy[0]
    plain, batch = iit.IntervenedModel(network, {}), network.encode(["Mary gave"])
    exact = iit.Score("generated", "exact", NEW)
    with pytest.warns(UserWarning, match=f"within {NEW} tokens.*score.max_new_tokens"):
        new, (text,) = exact.written(plain, batch)
    assert new.shape == (1, NEW)
    assert text.endswith("…")
    assert not exact.is_right(text, {"label": text[:-1]})
    (same,) = CONTAINS.written(plain, batch)[1]
    assert text == f"{same}…"
    # With the third new token as one of its ends the text ends there.
    settings, end = network.model.generation_config, int(new[0, 2])
    before, settings.eos_token_id = settings.eos_token_id, [1, end]
    try:
        new, (text,) = exact.written(plain, batch)
    finally:
        settings.eos_token_id = before
    assert "…" not in text
    column = new[0].tolist().index(end)
    assert text == network.tokenizer.decode(new[0, :column], skip_special_tokens=True)
    assert (new[0, column + 1 :] == -100).all()


def test_greedy_whatever_the_networks_settings(toy):
    network = toy[0]
    plain, batch = iit.IntervenedModel(network, {}), network.encode(["Mary gave a book to John"])
    settings = network.model.generation_config
    before = CONTAINS.written(plain, batch)
    try:
        settings.repetition_penalty, settings.num_beams = 1e6, 3
        after = CONTAINS.written(plain, batch)
    finally:
        settings.repetition_penalty = settings.num_beams = None
    assert before[1] == after[1]


def test_rows_have_the_same_controls_and_differences(toy, claim):
    network, pairs = toy
    score = iit.Score("generated", "contains", NEW)
    rows = where(iit.evaluate(claim, pairs, score=score), split="test")
    tokens = where(iit.evaluate(claim, pairs), split="test")
    for subset in ("all", "changing", "unchanging"):
        arms = {row.arm for row in where(rows, metric="iia_generated", subset=subset)}
        expected = {row.arm for row in where(tokens, metric="iia", subset=subset)}
        assert arms == {arm for arm in expected if arm.control != "rival"}
        assert Arm("no_intervention") in arms or subset == "unchanging"
    differing = {row.arm for row in where(rows, metric="iia_generated_difference")}
    assert differing == {row.arm for row in where(tokens, metric="iia_difference")}
    # The rows by tokens are the same beside it.
    for row in where(tokens, metric="iia"):
        assert row in rows
    table = pairs.split("test")
    shares = [row.value for row in where(rows, metric="iia_generated", subset="all", control=None)]
    texts = outcomes(claim, EncodedPairs(table, pairs.variables, network), score=score)
    assert shares == [texts.scored.mean()]


def test_forced_rows_and_verdict(toy, claim):
    network, pairs = toy
    score = iit.Score("forced")
    rows = iit.evaluate(claim, pairs, score=score)
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    forced = outcomes(claim, encoded).forced
    (row,) = where(rows, split="test", metric="iia_forced", subset="changing", control=None)
    changing = encoded.changing.numpy()
    assert row.value == pytest.approx(np.nanmean(forced[changing]))
    assert row.n == (~np.isnan(forced[changing])).sum()
    assert where(rows, metric="iia_forced_difference", control="vanilla", subset="changing")
    (verdict,) = iit.verdict(rows, metric=score.metric)
    (accuracy,) = [f for f in verdict.findings if f.criterion == "accuracy"]
    assert accuracy.value == row.value
    assert "IIA_FORCED" in accuracy.reason


def test_the_filter_uses_the_score(toy):
    """By hand: each prompt is run alone."""
    network = toy[0]
    task = ioi()
    names = ["Mary", "John", "Anna"]
    prompts = ["When Mary and John went", "When John and Anna went", "Then Anna met Mary"]
    answers = [" John", " John", " Mary"]
    forced = asking(network, iit.Score("forced"), task.alternatives)
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = network.model(network.encode([prompt])["input_ids"]).logits[0, -1]
        held = [name for name in names if name in prompt]
        best = max(held, key=lambda name: logits[network.tokenizer.convert_tokens_to_ids(name)])
        expected.append(f" {best}" == answer)
    assert forced.answers_right(prompts, answers).tolist() == expected
    assert forced.fingerprint() != network.fingerprint()

    texts = CONTAINS.written(iit.IntervenedModel(network, {}), network.encode(prompts))[1]
    answers = [f" {texts[0].split()[0]}", " Mary", [" New York City", f" {texts[2].split()[-1]}"]]
    right = asking(network, CONTAINS).answers_right(prompts[:1], answers[:1])
    assert right.tolist() == [True]
    assert asking(network, iit.Score()) is network


def test_at_the_start_of_a_line_listed_answers_lack_their_space(toy):
    network = toy[0]
    prompt = "Anna gave it to Mary\n"
    names = ["Anna", "Mary"]
    # Longer answers are scored as a whole: the sum over their tokens.
    likely = []
    for name in names:
        batch = network.encode([prompt], answers=[name])
        logits = iit.IntervenedModel(network, {}).answer_logits(batch)
        likely.append(float(log_probability(logits, batch["answer"])))
    best = names[int(likely[1] > likely[0])]
    forced = asking(network, iit.Score("forced"), (" Anna", " Mary"))
    right = forced.answers_right([prompt] * 2, names).tolist()
    assert right == [name == best for name in names]


def test_sampled_prompts_are_filtered(toy):
    network = toy[0]
    score = iit.Score("forced")
    options = {"n_train": 8, "n_val": 4, "n_test": 8}
    task = ioi()
    asked = asking(network, score, task.alternatives)
    pairs = Pairs.sample(task, asked, **options)
    assert 0 < pairs.facts["right"]["train"] < pairs.facts["drawn"]["train"]
    table = pairs.split("test")
    assert asked.answers_right(table["base"], table["base_answer"]).all()
    vanilla = iit.Edit(SITE, iit.VanillaIntervention())
    alignment = iit.Alignment(network, {"subject_position": vanilla})
    (row,) = where(
        iit.evaluate(alignment, pairs, score=score), split="test", metric="task_accuracy"
    )
    facts = pairs.facts
    assert row.value == pytest.approx(facts["right"]["test"] / facts["drawn"]["test"])
    # What another score has filtered says nothing of this one.
    (row,) = where(iit.evaluate(alignment, pairs), split="test", metric="task_accuracy")
    assert row.n == len(table)


def test_what_is_refused(toy, claim):
    network = toy[0]
    site = iit.Site("block_output", layer=0, position="answer[0]")
    at_answer = iit.Alignment(network, {"v": iit.Edit(site, iit.VanillaIntervention())})
    with pytest.raises(ValueError, match="no site at answer"):
        CONTAINS.check(at_answer)
    perceptron = equality_by_hand()
    with pytest.raises(ValueError, match="a decoder that writes"):
        asking(perceptron, CONTAINS).answers_right([np.zeros(16, dtype=np.float32)], [0])
    with pytest.raises(ValueError, match="alternatives"):
        asking(network, iit.Score("forced")).answers_right(["Mary gave"], [" John"])
    with pytest.raises(ValueError, match="alternatives"):
        Pairs.sample(equality(), asking(perceptron, iit.Score("forced")), n=30)


def test_several_right_answers_of_several_tokens(narrow):
    names = [" Mary", " the old man by the door", " John"]
    site = iit.Site("block_output", layer=0, position="last")
    alignment = iit.Alignment(narrow, {"v": iit.Edit(site, iit.VanillaIntervention())})
    prompts = ["Then Anna gave it to", "Mary saw", "The man is", "It was given to"]
    # Whatever the narrow network says of the prompt is one of the answers, by itself or behind one.
    plain = iit.IntervenedModel(narrow, {})
    spoken = []
    for prompt in prompts:
        batch = narrow.encode([prompt])
        ids = plain.generate(batch, do_sample=False, max_new_tokens=2)[:, -2:]
        spoken.append(narrow.tokenizer.decode(ids[0]))

    def rows(answers):
        return [
            {"split": "test", "base": prompt, "source": prompt, "label": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def right(answers):
        pairs = Pairs.of(rows(answers), "v")
        return outcomes(alignment, EncodedPairs(pairs.split("test"), "v", narrow)).right[None]

    lists = [[*names, spoken[0]], [spoken[1], *names], names, [names[1], spoken[3]]]
    expected = np.zeros(len(prompts), dtype=bool)
    for number in range(4):
        column = [answers[min(number, len(answers) - 1)] for answers in lists]
        expected |= right(column)
    assert right(lists).tolist() == expected.tolist() == [True, True, False, True]

    pairs = Pairs.of(rows(lists), "v")
    written = iit.evaluate(
        alignment, pairs, controls=False, score=iit.Score("generated", CONTAINS.compare, 2)
    )
    (row,) = where(written, metric="iia_generated", subset="all")
    assert row.value == 0.75
    encoded = EncodedPairs(pairs.split("test"), "v", narrow)
    with pytest.raises(ValueError, match="several are right"):
        outcomes(alignment, encoded, score=iit.Score("forced"))


def test_accuracy_at_the_task_is_of_the_same_score(narrow):
    site = iit.Site("block_output", layer=0, position="last")
    alignment = iit.Alignment(narrow, {"v": iit.Edit(site, iit.VanillaIntervention())})
    row = {"split": "test", "base": "Mary saw", "source": "The man is", "label": " John"}
    pairs = Pairs.of([row | {"base_answer": " Mary"}] * 4, "v")
    for score, n_rows in (("argmax", 1), ("generated", 0)):
        rows = iit.evaluate(alignment, pairs, score=iit.Score(score, "contains", 1))
        assert len(where(rows, metric="task_accuracy")) == n_rows
    prompts = Pairs.of([{"split": "test", "base": "Mary saw", "label": " Mary"}])
    rows = iit.evaluate(alignment, prompts, score=CONTAINS)
    assert len(where(rows, metric="task_accuracy")) == 1
