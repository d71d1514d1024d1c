"""The resumed path equals the full path, outputs and gradients, or it is not taken."""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore
from tests.families import DECODERS, MAKERS, make, prompts
from tests.seeds import shifted


def run(network, sites, base, source, store):
    torch.manual_seed(shifted(0))
    edits = {
        str(n): Edit(
            site, iit.LowRankRotatedSpaceIntervention(iit.site.resolve(network, site).width, 2)
        )
        for n, site in enumerate(sites)
    }
    edited = IntervenedModel(network, edits)
    edited.store = store
    out = edited.answer_logits(base, source)
    out.square().mean().backward()
    return out.detach(), [p.grad for p in edited.parameters()]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    "sites",
    [
        [Site("block_output", layer=0, position="x")],
        [Site("block_output", layer=1, position=-1)],
        [Site("mlp_output", layer=1, position=[0, 2])],
        [Site("attention_value_output", layer=1, head=2)],
        [Site("key_output", layer=0, position="x"), Site("final_norm_output", position=-1)],
        [Site("embedding_output", position="x")],
        [Site("final_norm_output", position=-1)],
        [Site("block_input", layer=1, position="x"), Site("block_output", layer=1, position=-1)],
    ],
    ids=lambda sites: "+".join(map(str, sites)),
)
def test_resumed_equals_full(family, sites, monkeypatch):
    network = make(family)
    base, source = prompts((12, 7, 12), 1), prompts((12, 7, 12), 2)
    for batch, x in ((base, [8, 2, 5]), (source, [5, 3, 0])):
        batch["positions"] = {"x": torch.tensor(x)}
    base["answer"] = torch.tensor([[9, 11], [8, -100], [7, 12]])
    full = run(network, sites, base, source, None)
    store = ActivationStore(network)
    filled = run(network, sites, base, source, store)
    again = run(network, sites, base, source, store)
    spilled = ActivationStore(network, budget=0)
    for found in (
        filled,
        again,
        run(network, sites, base, source, spilled),
        run(network, sites, base, source, spilled),
    ):
        torch.testing.assert_close(found[0], full[0], atol=3e-5, rtol=3e-5)
        for one, other in zip(found[1], full[1], strict=True):
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    assert all("forward" not in vars(module) for module in network.modules())


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("padding", ["left", "none"])
def test_resumed_equals_full_however_prompts_are_padded(family, padding):
    network = make(family)
    lengths = (9, 9, 9) if padding == "none" else (9, 5, 7)
    base, source = prompts(lengths, 1), prompts(lengths, 2)
    base["answer"] = torch.tensor([9, 8, 7])
    right = [dict(base), dict(source)]
    for batch in (base, source):
        batch["positions"] = {"x": torch.tensor([6, 2, 5])}
        if padding == "left":
            for key in ("input_ids", "attention_mask"):
                batch[key] = torch.stack(
                    [row.roll(9 - n) for row, n in zip(batch[key], lengths, strict=True)]
                )
    sites = [
        Site("block_output", layer=0, position="x"),
        Site("attention_value_output", layer=1, head=1, position=-1),
    ]
    full = run(network, sites, base, source, None)
    store = ActivationStore(network)
    for batch in right:
        batch["positions"] = base["positions"]
    # the second time from what the first has left, in another layout
    for given in ((base, source), right):
        found = run(network, sites, *given, store)
        torch.testing.assert_close(found[0], full[0], atol=1e-5, rtol=1e-5)
        for one, other in zip(found[1], full[1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_blocks_and_positions_before_the_edit_do_not_run_again(monkeypatch):
    network = make("llama")
    base, source = prompts((9, 6), 1), prompts((9, 6), 2)
    for batch in (base, source):
        batch["positions"] = {"x": torch.tensor([6, 2])}
    store = ActivationStore(network)
    sites = [Site("block_output", layer=0, position="x")]
    # the first of all is compared with a whole run
    first = run(network, sites, base, source, store)
    ran = []
    forward = type(network.model.layers[0].mlp).forward
    monkeypatch.setattr(
        type(network.model.layers[0].mlp),
        "forward",
        lambda self, x: ran.append((self, x.shape[1])) or forward(self, x),
    )
    again = run(network, sites, base, source, store)
    assert torch.equal(first[0], again[0])
    assert ran == [(network.model.layers[1].mlp, 4)], (
        "of nine columns the four from the earliest edit of the longest suffix on"
    )


def test_a_prompt_is_run_once_as_base_and_as_source(monkeypatch):
    network = make("llama")
    store = ActivationStore(network)
    one, two = prompts((6, 6), 1), prompts((6, 6), 2)
    sites = [Site("block_output", layer=0, position=2)]
    run(network, sites, one, one, store)
    run(network, sites, two, two, store)
    ran = []
    forward = type(network.model.layers[0].mlp).forward
    monkeypatch.setattr(
        type(network.model.layers[0].mlp),
        "forward",
        lambda self, x: ran.append(self) or forward(self, x),
    )
    run(network, sites, one, two, store)
    run(network, sites, two, one, store)
    assert set(ran) == {network.model.layers[1].mlp}


@pytest.mark.parametrize("why", ["hook", "training", "trainable", "encoder"])
def test_where_it_might_not_hold_the_whole_network_runs(why):
    network = make("bert" if why == "encoder" else "llama")
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    edited = IntervenedModel(
        network, {Site("block_output", layer=0, position=2): iit.VanillaIntervention()}
    )
    edited.store = ActivationStore(network)
    if why == "hook":
        network.get_input_embeddings().register_forward_hook(lambda m, a, out: out * 2)
    elif why == "training":
        network.train()
    elif why == "trainable":
        network.requires_grad_(True)
    calls = []
    block = network.base_model.encoder.layer[0] if why == "encoder" else network.model.layers[0]
    attention = block.attention.self.query if why == "encoder" else block.self_attn.q_proj
    real = attention.forward
    attention.forward = lambda x: calls.append(1) or real(x)
    expected = IntervenedModel(
        network, {Site("block_output", layer=0, position=2): iit.VanillaIntervention()}
    )
    for _ in range(2):
        before = len(calls)
        found = edited.answer_logits(base, source)
        assert len(calls) > before
        torch.testing.assert_close(found, expected.answer_logits(base, source))


def test_an_own_forward_of_a_block_is_put_back():
    network = make("llama")
    block = network.model.layers[0]
    own = block.forward
    block.forward = own
    store = ActivationStore(network)
    for _ in range(2):
        run(
            network,
            [Site("block_output", layer=1, position=2)],
            prompts((6, 6), 1),
            prompts((6, 6), 2),
            store,
        )
    assert vars(block)["forward"] is own
    assert set(MAKERS) > set(DECODERS)


def test_the_first_batch_is_compared_with_a_whole_run(monkeypatch, caplog):
    network = make("llama")
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    sites = [Site("block_output", layer=0, position=2)]
    full = run(network, sites, base, source, None)
    real = ActivationStore.prefix

    def wrong(self, *args):
        found = real(self, *args)
        return found._replace(hidden=found.hidden + 0.1)

    monkeypatch.setattr(ActivationStore, "prefix", wrong)
    with pytest.warns(
        UserWarning,
        match=r"Resuming at block 1 changes the logits by .* the whole network is run instead",
    ):
        found = run(network, sites, base, source, ActivationStore(network))
    torch.testing.assert_close(found[0], full[0], atol=0, rtol=0)
    torch.testing.assert_close(found[1], full[1], atol=0, rtol=0)


def test_what_failed_its_check_once_does_not_resume_again(monkeypatch, caplog):
    network, base, source = make("llama"), prompts((6, 6), 1), prompts((6, 6), 2)
    store, sites, real = (
        ActivationStore(network),
        [Site("block_output", layer=0, position=2)],
        ActivationStore.prefix,
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            ActivationStore,
            "prefix",
            lambda self, *a: (f := real(self, *a))._replace(hidden=f.hidden + 0.1),
        )
        with pytest.warns(UserWarning, match="Resuming at block 1"):
            run(network, sites, base, source, store)
    with caplog.at_level("INFO", logger="iit"):
        found = run(network, sites, base, source, store)
    assert "resuming at block 1 had changed the logits" in caplog.text
    torch.testing.assert_close(found[0], run(network, sites, base, source, None)[0], atol=0, rtol=0)


def test_a_network_that_changes_with_every_run_is_run_anew(caplog):
    network, base, source = make("llama"), prompts((6, 6), 1), prompts((6, 6), 2)
    store, rope = ActivationStore(network), network.model.rotary_emb
    sites = [Site("block_output", layer=0, position=2)]
    with caplog.at_level("INFO", logger="iit"):
        for _ in range(20):
            rope.inv_freq = rope.inv_freq * 0.9  # as rotary tables of some kinds are made anew
            logits, _ = run(network, sites, base, source, store)
            whole, _ = run(network, sites, base, source, None)
            torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
    assert sum("is forgotten" in record.message for record in caplog.records) == 20


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neo", "gptj", "llama", "bloom"])
@pytest.mark.parametrize("length", [20, 40, 64])
def test_rows_edited_early_and_late_beside_each_other(family, length):
    """Up to the last of 64 positions: what stands behind a short suffix asks for no position that
    there is not.
    """
    network, base, source = make(family), prompts((length, length), 1), prompts((length, length), 2)
    for batch in (base, source):
        batch["positions"] = {"x": torch.tensor([0, length - 4])}
    sites = [Site("block_output", layer=0, position="x")]
    (full, grads), store = run(network, sites, base, source, None), ActivationStore(network)
    for _ in range(2):
        found, more = run(network, sites, base, source, store)
        torch.testing.assert_close(found, full, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(more, grads, rtol=1e-4, atol=1e-5)


def test_attention_in_both_directions_runs_whole():
    network = make("gemma3")
    edit = Edit(Site("block_output", layer=1, position=2), iit.VanillaIntervention())
    assert IntervenedModel(network, {"x": edit}).first_block == 2
    network.config.use_bidirectional_attention = True
    assert IntervenedModel(network, {"x": edit}).first_block is None


def test_which_way_runs_go_is_told_once(caplog):
    network = make("llama")
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    store = ActivationStore(network)
    with caplog.at_level("INFO", logger="iit"):
        for _ in range(2):
            run(network, [Site("block_output", layer=0, position=2)], base, source, store)
        handle = network.model.norm.register_forward_hook(lambda m, a, out: None)
        run(network, [Site("block_output", layer=0, position=2)], base, source, store)
        handle.remove()
    assert [record.message for record in caplog.records] == [
        "Runs resume at the first block and the first position that are edited.",
        "The whole network runs: hooks that are not the engine's are on the network.",
    ]


def test_a_network_without_tokens_tells_that_it_runs_whole(caplog):
    network = (
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        .eval()
        .requires_grad_(False)
    )
    edited = IntervenedModel(network, {Site(module="0", side="output"): iit.VanillaIntervention()})
    edited.store = ActivationStore(network)
    with caplog.at_level("INFO", logger="iit"):
        for _ in range(2):
            edited.answer_logits(torch.ones(2, 3), torch.zeros(2, 3))
    assert [record.message for record in caplog.records] == [
        "The whole network runs: its answer is a class, and no token."
    ]


def test_an_example_runs_from_its_first_edited_position_to_its_last_answer(tiny_llama):
    ids = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(shifted(0)))
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2, [1] * 8])
    base = {
        "input_ids": ids,
        "attention_mask": mask,
        "positions": {"here": torch.tensor([[2], [4], [7]])},
        "answer": torch.tensor([[3], [3], [3]]),
    }
    edited = iit.IntervenedModel(
        tiny_llama, {iit.Site("block_output", layer=0, position="here"): iit.ZeroIntervention()}
    )
    assert edited.n_columns(base).tolist() == [6, 2, 1]
    longer = base | {"answer": torch.tensor([[3, 4], [3, 4], [3, 4]])}
    assert edited.n_columns(longer).tolist() == [7, 3, 2], "teacher-forced tokens run, too"
    module = iit.IntervenedModel(
        tiny_llama,
        {iit.Site(module="model.layers.0.mlp", side="output", position=1): iit.ZeroIntervention()},
    )
    assert module.n_columns(base) is None, "a site that is not a component does not resume"
