import pytest
import yaml

import iit
from iit import Edit, IntervenedModel, Site
from iit.network import fingerprint
from tests.families import make
from tests.intervened.test_saving import row

S2 = Site("block_output", layer=1, position="s2")


@pytest.fixture
def written(tmp_path):
    def write(edited):
        edited.save_pretrained(tmp_path / "my_save")
        return (tmp_path / "my_save" / "README.md").read_text(encoding="utf-8")

    return write


def arms(variable="x", **values):
    """One figure for each arm and subset, all different."""
    controls = (None, "vanilla", "random_subspace", "no_intervention")
    keys = [(subset, control) for subset in ("all", "changing") for control in controls]
    return [
        row(
            variable=variable,
            subset=s,
            control=c,
            value=(n + 1) / 10,
            low=n / 10,
            high=(n + 2) / 10,
            n=100 + n,
            **values,
        )
        for n, (s, c) in enumerate(keys)
    ]


def test_the_card_says_what_is_edited_and_how_to_load_it(written):
    net = make("llama")
    text = written(
        IntervenedModel(
            net,
            {
                "subject|position": Edit(
                    [S2, Site("mlp_output", layer=0, position=3)],
                    iit.LowRankRotatedSpaceIntervention(16, 4),
                ),
                "moved": Edit(
                    S2,
                    iit.VanillaIntervention(),
                    source_sites=Site("block_output", layer=0, position="s1"),
                ),
                Site("block_input", layer=0): iit.RotatedSpaceIntervention(16, {"u": 2, "v": 3}),
                "bounded": Edit(S2, iit.BoundlessRotatedSpaceIntervention(16, start=0.25)),
            },
        )
    )
    lines = text.splitlines()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "iit"
    assert f"| fingerprint | `{fingerprint(net)}` |" in lines
    assert "| class | LlamaForCausalLM, 2 layers of width 16, float32 |" in lines
    assert (
        r"| subject\|position | block_output[1] @ s2; mlp_output[0] @ 3 | the same | "
        r"LowRankRotatedSpaceIntervention | 4 of 16 |"
    ) in lines
    assert (
        "| moved | block_output[1] @ s2 | block_output[0] @ s1 | VanillaIntervention | whole |"
        in lines
    )
    assert (
        "| u | block_input[0] | the same | RotatedSpaceIntervention, a block of it | 2 of 16 |"
        in lines
    )
    assert (
        "| v | block_input[0] | the same | RotatedSpaceIntervention, a block of it | 3 of 16 |"
        in lines
    )
    assert (
        "| bounded | block_output[1] @ s2 | the same | "
        "BoundlessRotatedSpaceIntervention | 4 of 16 |"
    ) in lines
    code = text.split("```python\n")[1].split("```")[0].splitlines()
    assert code == [
        "network = ...  # the LlamaForCausalLM with the fingerprint above",
        'edited = iit.IntervenedModel.from_pretrained("my_save", network)',
    ]
    assert "score" not in text.lower()


def test_an_alignment_that_was_not_scored_says_so(written):
    text = written(iit.Alignment(make("llama"), {"x": Edit(S2, iit.VanillaIntervention())}))
    assert "This alignment has not been scored" in text
    assert 'alignment = iit.Alignment.from_pretrained("my_save", network)' in text


def test_scores_stand_beside_their_controls_and_are_the_test_splits(written):
    alignment = iit.Alignment(
        make("llama"), {"x": Edit(S2, iit.LowRankRotatedSpaceIntervention(16, 4))}
    )
    accuracy = row(metric="task_accuracy", value=0.87, low=0.85, high=0.89, n=600)
    difference = row(metric="iia_difference", control="vanilla", value=0.99)
    alignment.rows = [row(split="validation", value=0.98), *arms(), accuracy, difference]
    lines = written(alignment).splitlines()
    assert "### x, test pairs of ioi, seed 0" in lines
    start = lines.index("| | IIA, all pairs | IIA, changing pairs |")
    assert lines[start + 2 : start + 6] == [
        "| trained intervention | 0.100 [0.000, 0.200], n = 100 | 0.500 [0.400, 0.600], n = 104 |",
        (
            "| vanilla patching (whole vector) | 0.200 [0.100, 0.300], n = 101 | 0.600 [0.500, "
            "0.700], n = 105 |"
        ),
        (
            "| random subspaces of equal rank | 0.300 [0.200, 0.400], n = 102 | 0.700 [0.600, "
            "0.800], n = 106 |"
        ),
        "| no intervention | 0.400 [0.300, 0.500], n = 103 | 0.800 [0.700, 0.900], n = 107 |",
    ]
    assert (
        "Task accuracy of the network, unedited, on all drawn prompts: 0.870 [0.850, "
        "0.890], n = 600."
    ) in lines
    assert "0.980" not in "".join(lines)
    assert "0.990" not in "".join(lines)


def test_what_was_not_measured_is_said(written):
    alignment = iit.Alignment(make("llama"), {"x": Edit(S2, iit.VanillaIntervention())})
    alignment.rows = [row(split="validation")]
    text = written(alignment)
    assert "### x, validation pairs of ioi" in text
    assert "| trained intervention | 0.750 [0.700, 0.800], n = 200 | not measured |" in text
    assert "| no intervention | not measured | not measured |" in text
    assert "on all drawn prompts: not measured." in text


def test_each_variable_has_its_table(written):
    alignment = iit.Alignment(
        make("llama"), {S2: iit.RotatedSpaceIntervention(16, {"u": 2, "v": 3})}
    )
    alignment.rows = [*arms("u"), *arms("v", seed=1)]
    headings = [line for line in written(alignment).splitlines() if line.startswith("###")]
    assert headings == ["### u, test pairs of ioi, seed 0", "### v, test pairs of ioi, seed 1"]


@pytest.mark.parametrize(
    ("name", "revision", "dtype", "line"),
    [
        ("smollm2", "0.1.2", "float32", 'network = iit.load_network("smollm2")'),
        (
            "someone/net",
            None,
            "bfloat16",
            'network = iit.load_network("someone/net", dtype="bfloat16")',
        ),
        (
            "someone/net",
            "abc",
            "float32",
            'network = iit.load_network("someone/net", revision="abc")',
        ),
    ],
)
def test_the_network_is_loaded_as_it_was(name, revision, dtype, line):
    from iit.intervened.card import card
    from iit.intervened.saving import SaveContent

    network = {
        "name": name,
        "revision": revision,
        "class": "C",
        "width": 8,
        "n_layers": 2,
        "dtype": dtype,
        "fingerprint": "f",
    }
    text = card(
        SaveContent({S2: Edit(S2, iit.VanillaIntervention())}, network, False, None), "me/it"
    )
    assert line in text.splitlines()
    assert 'edited = iit.IntervenedModel.from_pretrained("me/it", network)' in text.splitlines()
