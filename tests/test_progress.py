import logging
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress

from iit import progress as module
from iit.progress import progress


@pytest.fixture
def lines(monkeypatch, caplog):
    """A log, and a clock on which every look takes two seconds."""
    monkeypatch.setenv("TTY_INTERACTIVE", "0")
    seconds = iter(range(0, 10_000, 2))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    caplog.set_level(logging.INFO, "iit.progress")
    return caplog


def test_a_terminal_has_a_bar_that_names_the_item_and_leaves_nothing_behind(terminal, capsys):
    before = sys.stdout
    assert list(progress(["a", "b"], "Reading {}")) == ["a", "b"]
    shown = capsys.readouterr().out
    assert "Reading b" in shown
    assert "100%" in shown
    assert shown.endswith("\x1b[1A\x1b[2K"), "the bar's line is cleared"
    assert sys.stdout is before


def test_what_is_logged_meanwhile_stands_on_lines_of_its_own(terminal, capsys):
    logger = logging.getLogger("a run")
    handler = logging.StreamHandler(module.stdout)
    logger.addHandler(handler)
    try:
        for _ in progress(range(2), "Reading"):
            logger.warning("a message")
    finally:
        logger.removeHandler(handler)
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.replace("\x1b[2K", "").replace("\r", "") == "a message" for line in shown) == 2


def test_of_nested_steps_the_outermost_one_is_shown(terminal, capsys):
    pairs = [
        (outer, inner)
        for outer in progress(range(2), "Outer")
        for inner in progress(range(2), "Inner")
    ]
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    shown = capsys.readouterr().out
    assert "Outer" in shown
    assert "Inner" not in shown


def test_an_error_or_an_early_end_leaves_the_terminal_to_what_comes(terminal, capsys):
    before = sys.stdout

    def fail():
        for _ in progress(range(2), "Failing"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert sys.stdout is before

    for _ in progress(range(2), "Left"):
        break
    steps = progress(range(2), "Closed")
    next(steps)
    steps.close()
    progress(range(2), "Never started").close()
    assert sys.stdout is before
    capsys.readouterr()

    list(progress(range(2), "Next"))
    assert "Next" in capsys.readouterr().out


def test_a_bar_of_somebody_else_is_no_error(terminal, capsys):
    with Progress(console=Console()) as other:
        other.add_task("Theirs", total=1)
        assert list(progress(range(3), "Ours")) == [0, 1, 2]


def test_a_log_has_a_line_now_and_then(lines, capsys):
    list(progress(range(60), "Reading {}"))
    messages = [record.getMessage() for record in lines.records]
    assert messages[0].startswith("Reading 2: 2 of 60, 0:00:"), "after five seconds"
    assert messages[0].endswith(" left")
    assert messages[1].startswith("Reading 18: 18 of 60, "), "and then every thirty"
    assert len(messages) == 4
    assert capsys.readouterr().out == ""


def test_a_short_step_has_no_line(lines, capsys):
    list(progress(range(2), "Reading"))
    list(progress(range(2), "Writing"))
    assert not lines.records
    assert capsys.readouterr().out == ""


def test_without_a_length_the_total_is_not_known(lines):
    list(progress(iter(lambda: len(lines.records), 1), "Reading"))
    assert lines.records[0].getMessage().startswith("Reading: 2 of ?,")


def test_a_notebook_has_lines_without_a_log(lines, capsys, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    list(progress(range(4), "Reading"))
    assert "Reading: 2 of 4" in capsys.readouterr().out
    assert not lines.records
