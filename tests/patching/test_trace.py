"""Causal tracing equals a loop over draws and cells with raw hooks."""

import numpy as np
import pytest
import torch

import iit
from iit.intervened import ActivationStore
from iit.patching import SPANS, trace
from iit.patching.corruption import questions, subject_deviation
from tests.families import GPT, SIZES, V, make
from tests.oracles import ORACLES
from tests.patching.contrasts import last_logits, raw_activation
from tests.seeds import shifted

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (7, 5)
SUBJECTS = ((1, 2, 3), (2,))
SPAN_TOKENS = {
    "subject_first": ([1], []),
    "subject_middle": ([2], []),
    "subject_last": ([3], [2]),
    "after_subject": ([4], [3]),
    "further": ([5], []),
    "last": ([6], [4]),
}


@pytest.fixture
def four_layers(monkeypatch):
    monkeypatch.setitem(SIZES, "num_hidden_layers", 4)
    monkeypatch.setitem(GPT, "n_layer", 4)


def batch(lengths=LENGTHS, subjects=SUBJECTS, seed=3):
    generator = torch.Generator().manual_seed(shifted(seed))
    ids = torch.randint(4, V, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    subject = torch.tensor([[*columns, *[-100] * (3 - len(columns))] for columns in subjects])
    answer = torch.arange(4, 4 + len(lengths)).unsqueeze(1)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "positions": {"subject": subject},
        "answer": answer,
    }


def noises(network, prompts, draws, multiple=3.0, seed=0):
    """Tensor[prompt, position, width] a draw, as the docstring says, from the weights."""
    weight = network.get_input_embeddings().weight
    tokens = [
        ids[column]
        for ids, columns in zip(prompts["input_ids"], SUBJECTS, strict=True)
        for column in columns
    ]
    scale = multiple * float(weight[torch.stack(tokens)].double().std(correction=0))
    found = []
    for draw in range(draws):
        noise = torch.zeros(*prompts["input_ids"].shape, weight.shape[1])
        for row, columns in enumerate(SUBJECTS):
            ids = prompts["input_ids"][row, : LENGTHS[row]].tolist()
            epsilon = np.random.default_rng([seed, draw, *ids]).standard_normal(
                (len(columns), weight.shape[1])
            )
            noise[row, list(columns)] = torch.from_numpy(scale * epsilon).float()
        found.append(noise)
    return found


def by_hand(network, family, prompts, noise, component, layers, position):
    """float[prompt], P(answer) of the run with noise in which the component has its clean values at
    one column (None: all).
    """

    def restored(theirs):
        def function(activation):
            new = theirs.clone() if position is None else activation.clone()
            if position is not None:
                new[:, position] = theirs[:, position]
            return new

        return function

    hooks = [(family, "embedding_output", 0, None, lambda activation: activation + noise)]
    for layer in layers:
        columns = ORACLES[family][component][2]
        theirs = raw_activation(network, family, component, layer, prompts, columns)
        hooks.append((family, component, layer, columns, restored(theirs)))
    found = last_logits(network, prompts, hooks).double().softmax(-1)
    return found.gather(1, prompts["answer"]).squeeze(1).numpy()


@pytest.mark.parametrize(
    ("family", "window", "reach"),
    [
        ("llama", 1, 0),
        ("gpt2", 3, 1),
        pytest.param("llama", 3, 1, marks=pytest.mark.long),
        pytest.param("gpt2", 1, 0, marks=pytest.mark.long),
    ],
)
def test_every_span_layer_and_component(family, window, reach, four_layers):
    network, prompts = make(family), batch()
    components = ["block_output", "mlp_output", "attention_output"]
    found = trace(network, prompts, components=components, window=window, draws=2)
    assert [cell.site.position for cell in found.cells[:6]] == list(SPANS)
    assert len(found) == 3 * 4 * len(SPANS)
    draws = noises(network, prompts, 2)
    for cell, values in zip(found.cells, found.of("probability"), strict=True):
        site = cell.site
        layers = range(max(0, site.layer - reach), min(4, site.layer + reach + 1))
        for row, tokens in enumerate(SPAN_TOKENS[site.position]):
            each = [
                by_hand(network, family, prompts, n, site.component, layers, t)[row]
                for n in draws
                for t in tokens
            ]
            expected = np.mean(each) if each else np.nan
            np.testing.assert_allclose(
                values[row], expected, **CLOSE, err_msg=f"{cell}, prompt {row}"
            )
    corrupted = np.mean([by_hand(network, family, prompts, n, None, (), None) for n in draws], 0)
    np.testing.assert_allclose(found.unedited["probability"], corrupted, **CLOSE)
    clean = (
        last_logits(network, prompts).double().softmax(-1).gather(1, prompts["answer"]).squeeze(1)
    )
    np.testing.assert_allclose(found.source["probability"], clean, **CLOSE)
    assert np.nanmax(np.abs(found.of("probability") - found.unedited["probability"])) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_position_of_a_layer_gives_the_clean_run(family):
    network, prompts = make(family), batch()
    options = {
        "components": ["embedding_output", "block_input", "block_output"],
        "positions": [None],
        "draws": 2,
    }
    found = trace(
        network, prompts, metric=["probability", "normalised_probability", "kl"], **options
    )
    for values in found.of("probability"):
        np.testing.assert_allclose(values, found.source["probability"], **CLOSE)
    np.testing.assert_allclose(found.mean("normalised_probability"), 1, atol=1e-3)
    np.testing.assert_allclose(found.of("kl"), 0, atol=1e-5)
    assert (found.unedited["kl"] > 1e-4).all()


def test_noise_of_strength_0_changes_nothing():
    network, prompts = make("llama"), batch()
    found = trace(network, prompts, positions=[*SPANS, "subject", -1], multiple=0.0, draws=1)
    for values in (*found.of("probability"), found.unedited["probability"]):
        np.testing.assert_allclose(
            values[~np.isnan(values)], found.source["probability"][~np.isnan(values)], **CLOSE
        )


def test_neither_batches_nor_company_nor_order_matter():
    network = make("llama")
    prompts = batch((7, 5, 6, 4, 7, 6), ((1, 2, 3), (2,), (1, 2), (0, 1), (3, 4), (0,)))
    options = {"positions": [*SPANS, "subject", None], "draws": 2, "metric": ["probability", "kl"]}
    together = trace(network, prompts, **options)
    small = trace(network, prompts, batch_size=2, **options)
    back = [5, 4, 3, 2, 1, 0]
    turned = trace(network, prompts, only=back, **options)
    has = [
        place
        for place, value in zip(options["positions"], together.of("kl"), strict=False)
        if not np.isnan(value[3])
    ]
    alone = trace(network, prompts, only=[3], **options | {"positions": has})
    assert 0 < len(has) < len(options["positions"])
    for name in together.values:
        np.testing.assert_allclose(small.of(name), together.of(name), **CLOSE)
        np.testing.assert_allclose(turned.of(name)[:, back], together.of(name), **CLOSE)
        mine = together.of(name)[:, 3]
        np.testing.assert_allclose(alone.of(name)[:, 0], mine[~np.isnan(mine)], **CLOSE)
        np.testing.assert_allclose(alone.unedited[name][0], together.unedited[name][3], **CLOSE)
    other = trace(network, prompts, seed=1, **options)
    assert np.abs(other.unedited["probability"] - together.unedited["probability"]).min() > 1e-6


def test_runs_resume_behind_the_noise(four_layers, monkeypatch):
    network, prompts = make("llama"), batch((7, 7), ((1, 2), (1, 2)))
    tokens = []
    for layer in (0, 3):
        projection = network.model.layers[layer].mlp
        real = projection.forward
        monkeypatch.setattr(
            projection,
            "forward",
            lambda x, n=layer, real=real: tokens.append((n, x.shape[:2].numel())) or real(x),
        )
    monkeypatch.setattr(ActivationStore, "is_trusted", lambda *args: True)
    trace(network, prompts, layers=[2], positions=["last"], draws=3)
    restored = [n for layer, n in tokens if layer == 3 and n == 2]
    assert len(restored) == 3, "of the restored runs the last token alone, once a draw"
    bottom = len([n for layer, n in tokens if layer == 0])
    tokens.clear()
    trace(network, prompts, layers=[0, 1, 2], positions=["last"], draws=3)
    assert len([n for layer, n in tokens if layer == 0]) == bottom, (
        "however many cells, the bottom is run once"
    )


def test_pairs_and_prompts_with_text(toy):
    network, pairs = toy
    found = trace(network, pairs, subject="s1", draws=1, metric=["probability", "logit_difference"])
    bases = {tuple(row["base"].split()) for row in pairs.split("validation") if row["changing"]}
    assert {line["n"] for line in found.table() if line["position"] == "last"} == {len(bases)}
    assert set(found.labels) <= set(SPANS)
    assert found.labels["subject_last"].strip() in network.tokenizer.get_vocab()
    assert {
        (row.control, row.metric)
        for row in found.rows(experiment="e", network="n", task="t", split="validation")
    } == {
        (control, metric)
        for control in (None, "corrupted", "no_intervention")
        for metric in ("probability", "logit_difference")
    }
    single = trace(network, pairs, subject="s1", draws=1, only=[1], positions="tokens", layers=[0])
    assert [cell.site.position for cell in single.cells] == list(range(len(single.labels)))
    assert single.cells[0].site.position == 0


def test_what_cannot_be_traced():
    network, prompts = make("llama"), batch()
    for options, match in (
        ({"subject": "nobody"}, "no role 'nobody'; its `positions` are: 'subject'"),
        ({"window": 2}, "window=2: a window has a layer in its middle"),
        ({"window": 3}, "at most the network's 2 layers"),
        ({"positions": "all"}, "positions='all'"),
        ({"only": [1], "positions": ["further"]}, "No prompt has a token of the span 'further'"),
        ({"positions": ["nobody"]}, "no role 'nobody'"),
        ({"draws": 0}, "0 draws"),
        ({"only": [2]}, "numbers 0 to 1"),
        ({"layers": [9]}, "layer=9 is out of range"),
    ):
        with pytest.raises(ValueError, match=match):
            trace(network, prompts, **options)
    absent = {**prompts, "positions": {"subject": torch.tensor([[1], [-100]])}}
    with pytest.raises(ValueError, match="role 'subject' is absent in example 1"):
        trace(network, absent)
    with pytest.raises(ValueError, match="own answer"):
        trace(network, {key: value for key, value in prompts.items() if key != "answer"})
    with pytest.raises(ValueError, match="answers of one token"):
        trace(network, {**prompts, "answer": torch.tensor([[4, 5], [6, 7]])})
    site = iit.Site("block_output", layer=0)
    with pytest.raises(ValueError, match="only edits of embedding_output"):
        iit.IntervenedModel(network, {"v": iit.Edit(site, iit.ZeroIntervention())}, stored=["v"])


def test_the_network_is_left_as_it_was():
    network, prompts = make("gpt2"), batch()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trace(network, prompts, draws=1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in network.modules()
    )


def test_scaled_embeddings_have_scaled_noise():
    network = make("gemma3")
    embedding = network.get_input_embeddings()
    prompts, subject = batch(), batch()["positions"]["subject"]
    tokens = prompts["input_ids"].gather(1, subject.clamp(min=0))[subject != -100]
    spread = embedding.weight[tokens].double().std(correction=0)
    deviation = subject_deviation(questions(network, prompts), subject)
    assert deviation == pytest.approx(float(embedding.embed_scale * spread), rel=1e-5)
