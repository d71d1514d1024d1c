"""Long texts: the head runs at the columns that are read and at no other, and the store holds as
many bytes a token as docs/long_texts.md says.
"""

import copy

import pytest
import torch
from torch import nn

import iit
from iit import Alignment, Edit, IntervenedModel, LanguageModel, Site
from iit.intervened.store import ActivationStore
from iit.patching import Contrast, ablate, attribute, patch, path_patch
from iit.patching.lens import lens_map
from tests.families import make, prompts

SITE = Site("block_output", layer=0, position="s2")


class Head(nn.Linear):
    """A head that notes how many columns of an example it sees in a forward."""

    def __init__(self, like):
        super().__init__(like.in_features, like.out_features, bias=False)
        self.weight, self.seen = like.weight, []

    def forward(self, hidden):
        self.seen.append(hidden.shape[1])
        return super().forward(hidden)


@pytest.fixture
def counted(toy):
    """The toy network with such a head, and its pairs."""
    network, pairs = toy
    model = copy.deepcopy(network.model)
    model.lm_head = Head(model.lm_head)
    return LanguageModel(model, network.tokenizer, "counted"), pairs, model.lm_head.seen


def paths(lm, pairs):
    """Whatever runs the network without giving back its whole output."""
    texts = pairs.dataset["base"][:4]
    batch = lm.encode(texts) | {"positions": {"s2": torch.tensor([9, 8, 7, 6])}}
    vanilla = IntervenedModel(lm, {SITE: iit.VanillaIntervention()})
    rotation = iit.LowRankRotatedSpaceIntervention(16, rank=2)
    alignment = Alignment(lm, {pairs.variable: Edit(SITE, rotation)})
    stored = ActivationStore(lm.model, layers=[1])
    contrast = Contrast.of(lm, pairs, split="test")
    sites = [Site("block_output", layer=layer, position="s2") for layer in (0, 1)]
    module = Site(module="model.layers.1")
    return {
        "capture": lambda: iit.capture(lm, batch, Site("final_norm_output")),
        "capture a module": lambda: iit.capture(lm, batch, module),
        "capture an edited run": lambda: iit.capture(vanilla, batch, sites[1], sources=batch),
        "capture_dataset": lambda: iit.capture_dataset(lm, [batch], module),
        "answer_logits": lambda: vanilla.answer_logits(batch, batch),
        "next tokens": lambda: lm.answers_right(texts, [" John"] * 4),
        "store": lambda: stored.fill([batch]),
        "fit": lambda: iit.fit(alignment, pairs, max_epochs=1, batch_size=8),
        "fit the network": lambda: iit.fit(
            Alignment(lm, {pairs.variable: Edit(SITE, iit.VanillaIntervention())}),
            pairs,
            module=iit.alignment.IIT,
            max_epochs=1,
            batch_size=8,
        ),
        "evaluate": lambda: iit.evaluate(alignment, pairs, trust="quick"),
        "patch": lambda: patch(lm, contrast, cells=sites),
        "path_patch": lambda: path_patch(
            lm, contrast, cells=sites[:1], receivers=Site("query_output", layer=1, position="s2")
        ),
        "ablate": lambda: ablate(lm, contrast, cells=sites),
        "attribute": lambda: attribute(lm, contrast, cells=sites),
        "lens_map": lambda: lens_map(lm, contrast, cells=sites),
    }


NAMES = (
    *("capture", "capture a module", "capture an edited run", "capture_dataset"),
    *("answer_logits", "next tokens", "store", "fit", "fit the network", "evaluate"),
    *("patch", "path_patch", "ablate", "attribute", "lens_map"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_runs_where_it_is_read(counted, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm, pairs, seen = counted
    run = paths(lm, pairs)
    assert set(run) == set(NAMES)
    # The whole output has logits at every column: the head counts.
    lm.model(**{key: torch.ones(2, 9).long() for key in ("input_ids", "attention_mask")})
    assert seen == [9]
    seen.clear()
    run[name]()
    # Answers of these pairs are one token. A run that ends early does not come to the head.
    assert max(seen, default=1) == 1
    assert seen or name == "capture"


def test_the_head_itself_is_read_at_every_column(tiny_llama):
    batch = prompts()
    for module in ("lm_head", ""):
        site = Site(module=module)
        expected = tiny_llama(**batch).logits
        captured = iit.capture(tiny_llama, batch, site)[site]
        assert captured.shape == expected.shape
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(captured[real], expected[real])
    # A loss needs the logits of all columns.
    block = Site(module="model.layers.0")
    with_labels = batch | {"labels": batch["input_ids"]}
    assert torch.equal(
        iit.capture(tiny_llama, with_labels, block)[block],
        iit.capture(tiny_llama, batch, block)[block],
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_store_takes_the_bytes_that_the_page_says(layer):
    network = make("llama")
    lengths = (7, 5)
    store = ActivationStore(network, layers=[layer])
    store.fill([prompts(lengths)])
    n_blocks, width, key_width, size = 2, 16, 8, 4
    streams = width * size if layer else 0
    keys_values = (n_blocks - layer) * 2 * key_width * size
    # Keys and values of the last token are not kept: a run resumes there at the latest.
    expected = sum(n * streams + (n - 1) * keys_values for n in lengths)
    assert sum(tensor.nbytes for tensor in store._contents.values()) == expected


def test_a_long_batch_is_captured_in_parts(tiny_llama, tmp_path):
    batch, site = prompts((7, 5, 6)), Site("block_output", layer=1)
    whole = iit.capture(tiny_llama, batch, site)[site]
    parts = ({key: value[row : row + 1] for key, value in batch.items()} for row in range(3))
    captured = iit.capture_dataset(tiny_llama, parts, site, folder=tmp_path / "rows")
    for row, n in enumerate((7, 5, 6)):
        torch.testing.assert_close(captured.example(site, row), whole[row, :n], atol=1e-5, rtol=0)
