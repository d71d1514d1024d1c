"""What a user's objects look like in a terminal and in a notebook."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure

import iit
from iit.alignment import Fitted
from iit.causal.figure import figure
from iit.data import Pairs
from iit.evaluation.verdict import Verdicts
from iit.patching import Contrast, patch
from iit.report import Table, curves, heatmap
from iit.result import ROW_FIELDS, Row, Rows, read_metrics, where
from iit.result.table import to_pandas
from iit.tasks import ioi

SITE_ALL = iit.Site("block_output", layer=1)
SITE = iit.Site("block_output", layer=1, position="s2")
SCRIPT = "<script>alert(1)</script>"


class Cells(HTMLParser):
    """The cells of a page's tables, the tags around text, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.lines, self.text, self.inside = [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.lines[-1][-1] += data


def shown(thing):
    """The mime types that a notebook without any magic gets, as IPython makes them."""
    return DisplayFormatter().format(thing)[0]


def terminal_text(thing):
    text = repr(thing)
    assert text == str(thing)
    assert max(map(len, text.split("\n"))) <= 80
    assert "np.float" not in text
    assert "tensor(" not in text
    assert shown(thing)["text/plain"].strip().replace(" ", "") == text.strip().replace(" ", "")
    return text


def row(**columns):
    plain = dict.fromkeys(ROW_FIELDS) | {"network": "n", "task": "ioi", "variable": "v", "seed": 0}
    plain |= {"component": "block_output", "layer": 1, "position": "s2", "rank": 4, "n": 200}
    plain |= {"split": "test", "subset": "changing", "metric": "iia"}
    return Row(**plain | {"value": np.float64(2 / 3), "low": 0.5, "high": 0.8} | columns)


@pytest.fixture(scope="module")
def effects(toy):
    network, pairs = toy
    metrics = ["normalised_logit_difference", "probability"]
    return patch(
        network, pairs, components="block_output", positions=["s2", "last"], metric=metrics
    )


def test_rows_are_a_table_of_figures_with_interval_n_and_split():
    rows = Rows([row(split="train"), row(subset="all"), row(control="vanilla"), row()])
    rows += [row(control="random_subspace", draw=draw) for draw in range(3)]
    text = terminal_text(rows)
    title, header, _, *lines = text.split("\n")
    assert title.strip() == "4 of 7 rows: v at block_output[1] @ s2, rank 4"
    assert header.split() == ["figure", "pairs", "value", "(95%", "interval)", "n"]
    assert [line.split(maxsplit=2)[0] for line in lines] == ["trained", "vanilla", *["trained"] * 2]
    assert "test, changing  0.667 (0.500 to 0.800) 200" in lines[0]
    assert "train, changing" in lines[3], "training pairs come last"
    cells = Cells(shown(rows)["text/html"]).lines
    assert cells[1] == ["trained intervention", "test, changing", "0.667 (0.500 to 0.800)", "200"]
    assert len(cells) == 5


def test_rows_of_several_cells_say_whose_they_are_and_many_are_cut():
    rows = Rows(row(layer=layer) for layer in range(30))
    text = terminal_text(rows)
    assert "20 of 30 rows" in text
    for layer in (0, 19):
        assert f"v at block_output[{layer}] @ s2" in " ".join(text.split())
    assert "block_output[20]" not in text
    assert len(Cells(rows._repr_html_()).lines) == 21


def test_a_row_by_itself_is_one_line():
    assert repr([row()]) == (
        "[Row(iia, trained: 0.667 (0.500 to 0.800), n = 200, test, changing; "
        "v at block_output[1] @ s2, rank 4)]"
    )


def test_no_rows_no_verdict_and_no_activations_are_shown_as_such():
    assert "0 of 0 rows" in terminal_text(Rows())
    assert "0 of 0 rows" in Rows()._repr_html_()
    assert list(Rows().to_pandas()) == list(ROW_FIELDS)
    assert repr(Verdicts()) == "[]"
    assert Verdicts()._repr_html_() == ""
    assert repr(iit.Activations({})) == "Activations"


def test_rows_are_a_list():
    rows = Rows([row(), row(subset="all")])
    assert rows == [row(), row(subset="all")]
    assert rows[:1] + rows[1:] == rows
    rows += [row(control="vanilla")]
    assert isinstance(rows, Rows)
    assert isinstance(where(rows, subset="changing"), Rows)
    assert where(rows, subset="changing") == [row(), row(control="vanilla")]


def test_what_an_evaluation_and_a_sweep_return_shows_itself(toy):
    network, pairs = toy
    alignment = iit.Alignment(
        network, {"subject_position": iit.Edit(SITE, iit.VanillaIntervention())}
    )
    rows = iit.evaluate(alignment, pairs, controls=False)
    assert f"of {len(rows)} rows" in terminal_text(rows)
    assert "text/html" in shown(rows)
    swept = iit.sweep(network, pairs, components="block_output", positions=["s2"])
    assert "block_output[0] @ s2" in terminal_text(swept)


def test_a_frame_of_rows_keeps_whole_numbers_lists_and_gaps():
    frame = Rows([row(), row(layer=None, head=[1, 2], position=[0, 3], rank=None)]).to_pandas()
    assert list(frame) == list(ROW_FIELDS)
    assert frame["value"].dtype == float
    assert frame["n"].dtype == int
    assert frame["layer"].tolist() == [1, None]
    assert isinstance(frame["layer"][0], int)
    assert frame["head"].tolist() == [None, [1, 2]]
    assert frame["network"].tolist() == ["n", "n"]


def test_a_verdict_has_a_line_for_each_open_point():
    rows = [row(low=0.6, high=0.7), row(subset="all")]
    rows.append(row(subset="unchanging", value=0.99, low=0.98, high=1.0))
    verdicts = iit.verdict(rows)
    text = terminal_text(verdicts[0])
    assert text.startswith("Verdict on v: OPEN")
    assert "accuracy  open    IIA 0.667 (0.600 to 0.700, n = 200) on changing pairs" in text
    assert "isolation" not in text
    assert "Not run: task," in text
    page = Cells(shown(verdicts)["text/html"])
    assert page.lines[1][:2] == ["accuracy", "open"]
    assert "Verdict on v: OPEN" in page.text
    two = iit.verdict([*rows, row(variable="w"), row(variable="w", subset="all")])
    assert Cells(two._repr_html_()).tags.count("table") == 2
    assert "Verdict on w" in repr(two)


def test_pairs_show_the_first_with_their_roles_and_how_many_there_are():
    pairs = Pairs.sample(ioi(), n_train=12, n_val=4, n_test=4)
    text = terminal_text(pairs)
    assert "{'train': 12, 'validation': 4, 'test': 4}" in text.replace("\n", " ")
    page = Cells(shown(pairs)["text/html"])
    assert page.lines[0] == ["split", "base", "source", "label", "kind"]
    assert len(page.lines) == 6
    first = pairs.dataset[0]
    assert page.lines[1][1:4] == [first["base"], first["source"], first["label"]]
    n_roles = sum(span is not None for span in first["base_roles"].values())
    assert text.count("⟦") == text.count("⟧") == page.tags.count("u") >= 5 * n_roles
    start, stop = first["base_roles"]["s2"]
    assert f"⟦{first['base'][start:stop]}⟧" in text


def test_roles_that_overlap_and_prompts_that_are_long():
    base = "x" * 500 + " the city of Paris"
    spans = {"city": [505, 518], "name": [513, 518]}
    rows = [{"split": "test", "base": base, "source": "short", "label": "a", "base_roles": spans}]
    text = Pairs.of(rows, "v")._repr_html_()
    assert "<b><u>Paris</u></b>" in text
    assert text.count("<u>") == 1
    assert "x" * 201 not in text
    assert "…" in text


def test_pairs_of_tensors_for_two_variables_and_of_prompts_alone():
    tensors = [[0.123456, 1.0], [0.5, 0.25]]
    rows = [{"split": "test", "base": np.array(tensors), "source": np.array(tensors), "label": 3}]
    text = terminal_text(Pairs.of(rows, "v"))
    assert "tensor (2, 2)" in text
    assert "0.12" not in text
    pairs = Pairs.sample(ioi(), variable=("subject_position", "io_name"), n=9)
    header = Cells(pairs._repr_html_()).lines[0]
    assert header[2:4] == ["source[io_name]", "source[subject_position]"]
    assert pairs._repr_html_().count("<u>") > 10
    alone = Pairs.of([{"split": "test", "base": "one", "label": ["two", "2"]}])
    assert "['two', '2']" in terminal_text(alone)


def test_no_pairs():
    pairs = Pairs.sample(ioi(), n=9)
    none = replace(pairs, dataset=pairs.dataset.select([]))
    assert "{}; the first 0" in terminal_text(none)
    assert len(Cells(none._repr_html_()).lines) == 1
    assert len(none.to_pandas()) == 0


def test_a_frame_of_pairs_has_their_columns():
    pairs = Pairs.sample(ioi(), n=9)
    frame = pairs.to_pandas()
    assert list(frame) == pairs.dataset.column_names
    assert frame["base"].tolist() == list(pairs.dataset["base"])
    assert frame["changing"].dtype == bool


def test_effects_are_a_figure_in_a_notebook_and_a_table_in_a_terminal(effects):
    text = terminal_text(effects)
    best = effects.top(1, "normalised_logit_difference")[0]
    words = " ".join(text.split())
    assert words.startswith("normalised_logit_difference, VanillaIntervention: 4 of 4 cells")
    interval = effects.interval(best, "normalised_logit_difference")
    line = text.partition("─\n")[2].partition("\n")[0]
    assert line.startswith(str(effects.cells[best]))
    assert f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" in line
    content = shown(effects)
    assert set(content) == {"text/plain", "image/png"}


def test_a_frame_of_effects_is_their_table(effects):
    frame = effects.to_pandas()
    assert len(frame) == 8
    assert set(frame["metric"]) == {"normalised_logit_difference", "probability"}
    assert frame["value"].dtype == float
    assert frame["layer"].dtype == int
    assert frame["unit"].tolist() == [None] * 8


def test_many_effects_are_cut_and_effects_without_a_value_say_so(toy):
    network, pairs = toy
    every = patch(network, pairs, components="mlp_activation", positions=["s2"], units=range(8))
    text = terminal_text(every)
    assert f"10 of {len(every)} cells" in text
    values = {"logit_difference": np.full((len(every), len(every.clusters)), np.nan)}
    with pytest.warns(RuntimeWarning):
        empty = repr(replace(every, values=values))
    assert f"0 of {len(every)} cells" in " ".join(empty.split())


def test_heatmap_takes_what_patch_returned(toy, effects):
    network, pairs = toy
    picture = heatmap(effects, title="a title")
    assert picture.axes[0].get_xlabel() == "position"
    assert picture.axes[-1].get_ylabel().startswith("normalised logit difference")
    chosen = heatmap(effects, metric="probability", x="layer", y="position")
    assert chosen.axes[0].get_xlabel() == "layer"
    lines = heatmap(effects.table(), metric="probability")
    assert lines.axes[0].get_xlabel() == "position"
    contrast = Contrast.of(network, pairs)
    heads = patch(
        network, contrast, components="attention_value_output", heads="all", positions=["s2"]
    )
    assert heatmap(heads).axes[0].get_xlabel() == "head"
    with pytest.raises(ValueError, match="No line has the metric 'None'"):
        heatmap(effects.table())


def test_figures_of_ours_appear_without_any_magic(effects):
    drawn = curves(effects.table(), x="layer", metrics=["probability"], series="position")
    for picture in (drawn, figure(ioi().model), heatmap(effects)):
        assert isinstance(picture, Figure)
        assert shown(picture)["image/png"].startswith(b"\x89PNG")
    assert "image/png" not in shown(Figure()), "a bare figure needs a magic"


def test_an_alignment_says_what_it_edits_whether_it_was_fitted_and_how_it_scored(toy):
    network, _ = toy
    alignment = iit.Alignment(
        network, {"v": iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(16, 2))}
    )
    text = terminal_text(alignment)
    assert "Alignment on LanguageModel(toy" in text
    assert text.split("\n")[-1] == "32 trainable weights; not fitted here"
    line = ["v", "block_output[1] @ s2", "LowRankRotatedSpaceIntervention", "2 of 16"]
    assert Cells(shown(alignment)["text/html"]).lines[1] == line
    alignment.fitted = Fitted(2, "val/iia_changing", np.float64(2 / 3), 5, 60)
    alignment.rows = [row(control="vanilla"), row()]
    text = terminal_text(alignment)
    assert "Fitted(val/iia_changing 0.667 in epoch 3 of 5, 60 steps)" in " ".join(text.split())
    assert "Row(iia, trained: 0.667 (0.500 to 0.800), n = 200, test, changing;" in text


def test_fit_says_so_on_the_alignment(toy):
    network, pairs = toy
    alignment = iit.Alignment(
        network, {"subject_position": iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(16, 1))}
    )
    fitted = iit.fit(alignment, pairs, max_epochs=1)
    assert alignment.fitted is fitted
    assert repr(fitted) in " ".join(repr(alignment).split())


def test_an_intervened_model_has_a_line_for_each_edit(tiny_llama):
    model = iit.IntervenedModel(
        tiny_llama,
        {
            "whole": iit.Edit(SITE, iit.VanillaIntervention()),
            iit.Site("block_input", layer=0): iit.RotatedSpaceIntervention(16, {"a": 2, "b": 3}),
            SITE: iit.BoundlessRotatedSpaceIntervention(16, start=0.25),
        },
    )
    text = terminal_text(model)
    assert text.startswith("IntervenedModel on LlamaForCausalLM")
    lines = Cells(model._repr_html_()).lines[1:]
    assert [line[0] for line in lines] == ["whole", "a, b", str(SITE)]
    assert [line[3] for line in lines] == ["whole", "5 of 16", "4 of 16"]
    n = sum(parameter.numel() for parameter in model.parameters())
    assert f"{n} trainable weights" in text
    assert "0 trainable weights" in repr(iit.IntervenedModel(tiny_llama, {}))


def test_activations_show_shapes_and_not_numbers(toy):
    network, _ = toy
    captured = iit.capture(network, network.encode(["John went", "Mary"]), [SITE_ALL])
    text = terminal_text(captured)
    assert text == "Activations\n  block_output[1]: [2, 2, 16], torch.float32"
    dataset = iit.capture_dataset(network, [network.encode(["John went"])], [SITE_ALL])
    assert terminal_text(dataset) == "Captured, 1 examples\n  block_output[1]: [2, 16]"


def test_what_a_collecting_generate_returns_is_short(toy):
    network, _ = toy
    model = iit.IntervenedModel(network, {})
    batch = network.encode(["John went to"])
    returned = model.generate(batch, collect=SITE_ALL, max_new_tokens=2, min_new_tokens=2)
    assert repr(returned).startswith("Generated([2] new tokens: ['")
    assert "tensor(" not in repr(returned)
    assert torch.is_tensor(returned.output)


def test_a_causal_model_has_a_line_for_each_variable():
    text = terminal_text(ioi().model)
    assert "\n  subject_position ← first, second, subject\n" in text


def test_text_is_escaped_and_marks_are_no_holes():
    table = Table(SCRIPT, ("a", SCRIPT), [(SCRIPT, "⟦<i>⟧")], SCRIPT)
    html = table.html()
    assert "<script>" not in html
    assert "<b><u>&lt;i&gt;</u></b>" in html
    assert Cells(html).text.count(SCRIPT) == 4
    assert SCRIPT in table.text()
    assert "[/red]" in Table("", ("a",), [("[/red]",)]).text(), "brackets are no markup"


def test_a_table_needs_no_network_and_no_colours_of_its_own():
    html = Table("t", ("a", "b"), [("1", "2")]).html()
    assert "http" not in html
    assert html.count("color") == html.count("color:inherit") == 1
    assert "background" not in html


def test_rows_of_a_run_are_shown_as_they_stand_in_its_file():
    metrics = read_metrics("experiments/das_ioi/result.json")
    text = terminal_text(Rows(metrics.rows))
    (trained,) = where(
        metrics.rows, split="test", subset="changing", control=None, metric="iia", draw=None
    )
    assert f"{trained.value:.3f} ({trained.low:.3f} to {trained.high:.3f})" in text
    frame = to_pandas(map(Row.to_dict, metrics.rows))
    assert json.loads(frame["value"].to_json(orient="values")) == pytest.approx(
        [row.value for row in metrics.rows], abs=1e-9
    )


def test_dir_lists_what_is_imported_when_it_is_asked_for():
    assert "fit" in dir(iit)
    assert set(iit.__all__) <= set(dir(iit))


def test_the_outputs_on_the_page_are_true(capsys):
    page = Path("docs/notebook.md").read_text(encoding="utf-8")
    names = {}
    blocks = re.findall(r"```python\n(.*?)```\n\n((?:(?:    [^\n]*)?\n)+)", page, re.DOTALL)
    assert len(blocks) == 4
    for code, output in blocks:
        exec(code, names)
        printed = [line.rstrip() for line in capsys.readouterr().out.strip().split("\n")]
        assert [line.removeprefix("    ") for line in output.strip().split("\n")] == printed
