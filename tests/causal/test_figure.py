import pytest

from iit.causal.figure import figure, graph
from iit.tasks import addition


def test_the_graph_has_the_models_edges_and_layers():
    drawn = graph(addition().model)
    assert set(drawn.predecessors("tens")) == {"a_tens", "b_tens", "ones_carry"}
    depth = dict(drawn.nodes(data="depth"))
    assert depth == {
        "a_ones": 0,
        "b_ones": 0,
        "a_tens": 1,
        "b_tens": 1,
        "ones_carry": 1,
        "ones": 1,
        "tens": 2,
        "hundreds": 2,
        "answer": 3,
    }
    assert [v for v, kind in drawn.nodes(data="kind") if kind == "output"] == ["answer"]


def test_the_figure_shows_every_variable_and_every_arrow():
    model = addition().model
    axes = figure(model).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert set(model.variables) <= set(texts)
    assert len([t for t in texts if t == ""]) == sum(
        len(model.parents(v)) for v in model.mechanisms
    )
    assert axes.get_title() == "addition"


def test_aligned_variables_tell_where():
    model = addition().model
    axes = figure(model, {"ones_carry": "block_output[1] @ last"}).axes[0]
    aligned = {
        text.get_text(): text.get_bbox_patch().get_linewidth()
        for text in axes.texts
        if text.get_text()
    }
    assert aligned.pop("ones_carry\nblock_output[1] @ last") > max(aligned.values())
    with pytest.raises(ValueError, match="no variable"):
        figure(model, {"nothing": "nowhere"})
