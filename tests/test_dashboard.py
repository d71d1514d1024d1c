"""The workspace of `python -m iit.dashboard`, as JSON: no server was there to save it on."""

import json
import sys

import pytest

from iit import dashboard

# The library's own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore:::wandb_workspaces", "ignore:::pydantic")


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["iit.dashboard", *arguments])
    dashboard.main()


def test_the_json_has_a_section_for_each_question(monkeypatch, tmp_path, capsys):
    path = tmp_path / "workspace.json"
    called(monkeypatch, "mine", "--entity", "lab", "--out", str(path))
    assert capsys.readouterr().out == ""
    view = json.loads(path.read_text())
    assert (view["project"], view["entity"]) == ("mine", "lab")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: section["panels"] for section in sections}
    assert list(panels) == [
        "Validation IIA over layer and position",
        "Validation IIA against rank, and controls",
        "Training",
        "Verdicts",
        "Cost",
    ]
    where, ranks, training, _, cost = panels.values()
    axes = [column["accessor"] for column in where[0]["config"]["columns"]]
    assert axes == [
        "config:site.value.layer",
        "config:site.value.position",
        "config:rank.value",
        "config:seed.value",
        "summary:validation/changing/trained/iia",
        "summary:verdict",
    ]
    assert where[2]["config"]["mediaKeys"] == ["atlas"]
    assert [panel["config"]["yAxis"] for panel in ranks] == [
        f"summary:validation/changing/{arm}/iia"
        for arm in ("trained", "vanilla", "pca_subspace", "random_subspace")
    ]
    assert {panel["config"]["xAxis"] for panel in ranks} == {"config:rank.value"}
    curves = [panel["config"]["metrics"] for panel in training]
    assert curves[0] == ["train/loss", "val/loss"]
    assert "val/vanilla/iia_changing" in curves[1]
    assert cost[0]["config"]["metrics"] == ["_runtime"]
    assert "summary:test/" not in path.read_text(), "runs are compared on validation"


def test_it_prints_and_saves_on_request_only(monkeypatch, capsys):
    saved = []
    save = "wandb_workspaces.workspaces.Workspace.save"
    monkeypatch.setattr(save, lambda workspace: saved.append(workspace))
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    called(monkeypatch, "mine")
    assert json.loads(capsys.readouterr().out)["entity"] == "lab"
    assert not saved
    called(monkeypatch, "mine", "--save")
    assert [workspace.project for workspace in saved] == ["mine"]


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        called(monkeypatch, "mine")
    assert "pip install 'iit[dashboards]'" in capsys.readouterr().err
