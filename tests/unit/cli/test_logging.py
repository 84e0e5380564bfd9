"""The log of a controller: what is a line, at which level, and where it goes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from rich.live import Live

from sweep.cli import live_view
from sweep.cli.line_log import EvaluationLog, LineLog
from sweep.cli.live_view import LiveView
from sweep.cli.main import main
from sweep.model.effects import Assign, Cancel, Drain, StartWorkers, Stop, Tell
from sweep.model.objectives import Objective
from sweep.model.states import Ending
from tests.helpers.tables import write_table
from trainer import logs
from trainer.contract import Report, StopCause
from trainer.room import Room

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\w+) (.*)")
FAST = ("queue.charge=false", "objective=loss", "sampler=random", "pruner=none", "search.trials=2")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The logging is that of the process again."""
    monkeypatch.delenv(logs.LEVEL_ENV, raising=False)
    loggers = [logging.getLogger(name) for name in logs.PACKAGES]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def log() -> LineLog:
    facts = SimpleNamespace(best_trial=3, best=1.5)
    study = SimpleNamespace(facts=lambda: facts, params=lambda trial: {"optimizer.lr": 0.001})
    return LineLog(cast(Any, study), Objective("loss"))


def lines(text: str) -> list[tuple[str, str]]:
    """Level and message of each line."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(match[1], match[2]) for match in found if match]


def test_events_are_lines_with_time_and_level(log: LineLog, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    log.done(StartWorkers((0, 1)))
    log.done(Assign(3, 2, "w0001"))
    log.reported(3, Report(1, 8, 240, 1, 1.5, 0.25, 0.001, 100.0, 2.0))
    log.done(Stop(3, 2, StopCause.PRUNED, "above the median"))
    log.done(Tell(3, Ending.COMPLETE, ""))
    log.done(Tell(4, Ending.FAIL, "no memory"))
    log.done(Cancel("w0002", "no beat"))
    log.done(Cancel("w0002", "no beat"))
    log.done(Drain("w0001"))
    log.round_failed("squeue does not answer")
    assert lines(capsys.readouterr().out) == [
        ("INFO", "starting 2 workers"),
        ("INFO", "starting trial 3 again (attempt 2) on w0001: lr=0.001"),
        ("INFO", "trial 3 milestone 1: loss 1.5000 loss 1.5000 grad_norm 0.250"),
        ("INFO", "stopping trial 3 (pruned): above the median"),
        ("INFO", "trial 3 COMPLETE loss 1.5000 (best so far)"),
        ("WARNING", "trial 4 FAIL: no memory"),
        ("WARNING", "cancelling worker w0002: no beat"),
        ("WARNING", "error, retrying: squeue does not answer"),
    ]


def test_evaluations_are_told_apart(log: LineLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    evaluations = EvaluationLog(log, Room(tmp_path))
    evaluations.done(Assign(3, 1, "w0001"))
    evaluations.done(Tell(3, Ending.FAIL, "exit code 1"))
    log.done(Cancel("w0001", "no beat"))
    evaluations.done(Cancel("w0001", "no beat"))
    assert lines(capsys.readouterr().out) == [
        ("INFO", "starting evaluation of trial 3 on evaluations/w0001"),
        ("WARNING", "evaluation of trial 3 failed: exit code 1"),
        ("WARNING", "cancelling worker w0001: no beat"),
        ("WARNING", "cancelling worker evaluations/w0001: no beat"),
    ]


@pytest.mark.parametrize(
    ("variable", "levels"),
    [
        ("DEBUG", ["DEBUG", "INFO", "WARNING"]),
        ("", ["INFO", "WARNING"]),
        ("WARNING", ["WARNING"]),
        ("LOUD", ["INFO", "WARNING"]),
    ],
)
def test_the_environment_says_the_level(
    variable: str, levels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.LEVEL_ENV, variable)
    logs.configure()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("sweep.x").log(level, "said")
        logging.getLogger("other").log(logging.INFO, "said")
    assert [level for level, _ in lines(capsys.readouterr().out)] == levels


@pytest.mark.parametrize(
    ("option", "levels"),
    [("--verbose", {"DEBUG", "INFO"}), ("-v", {"DEBUG", "INFO"}), ("--quiet", set()), (None, {"INFO"})],
)
def test_verbose_and_quiet(
    option: str | None, levels: set[str], rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "curves.npz")
    words = ["run", "queue=simulated", f"queue.table={table}", "name=s", *FAST, *([option] if option else [])]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert {match[1] for line in output.splitlines() if (match := LINE.fullmatch(line))} == levels
    assert "done: all 2 trials have ended" in output, "a result is printed at every level"
    names = {"--verbose": "DEBUG", "-v": "DEBUG", "--quiet": "WARNING", None: None}
    assert os.environ.get(logs.LEVEL_ENV) == names[option], "what is started from here inherits it"


def test_in_a_terminal_lines_go_to_the_live_view_and_nowhere_else(
    log: LineLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[list[str]] = []

    def draw(state: Any, lines: list[str], height: int) -> str:
        drawn.append(lines)
        return ""

    monkeypatch.setattr(live_view, "live_view", draw)
    logs.configure()
    reader = cast(Any, SimpleNamespace(state=lambda: None))
    view = LiveView(Live(console=Console(file=StringIO()), auto_refresh=False), reader)
    with logs.redirected(view):
        log.done(StartWorkers((0,)))
        assert drawn == [["[0:00] starting 1 worker"]]
        view.refresh()
        assert len(drawn) == 1, "not drawn again within half a second"
        monkeypatch.setattr(live_view, "REFRESH_SECONDS", 0.0)
        view.refresh()
        assert len(drawn) == 2
    assert capsys.readouterr().out == ""
    log.done(StartWorkers((0,)))
    assert lines(capsys.readouterr().out) == [("INFO", "starting 1 worker")]
