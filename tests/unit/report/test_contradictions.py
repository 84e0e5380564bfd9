"""A digit that changed in the study or in a file makes no other trial the winner."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.cli.main import main
from sweep.report.reader import open_reader
from sweep.wiring.rooms import journal_path
from tests.helpers.played_rooms import copy_room, make
from trainer.room import Room


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return make("finished", tmp_path_factory.mktemp("source"))


@pytest.fixture
def room(source: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    return copy_room(source, tmp_path / "rooms")


def ranking(room: Room) -> list[int]:
    """The numbers of the complete trials, best first."""
    rows = [row for row in open_reader(room).state().rows if row.value is not None]
    return [row.number for row in sorted(rows, key=lambda row: row.value or 0.0)]


def change(path: Path, chosen: Callable[[dict[str, object]], bool], edit: Callable[[dict[str, object]], None]) -> None:
    """Change the entries of a file of lines that are chosen."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(map(chosen, lines))
    for entry in filter(chosen, lines):
        edit(entry)
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in lines))


def refused(room: Room, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["best", room.root.name]) == 2
    said = capsys.readouterr().err
    assert re.match(r"sweep: which trial is the best cannot be told \(trial \d+: ", said)
    assert main(["export", room.root.name, "-o", "-"]) == 2
    capsys.readouterr()
    assert main(["status", room.root.name]) == 0
    assert "cannot be told" in capsys.readouterr().out
    return said


def test_a_value_that_no_report_has_wins_nothing(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    worst = ranking(room)[-1]

    def lower(entry: dict[str, object]) -> None:
        entry["values"] = [0.5]

    change(journal_path(room), lambda e: e["op_code"] == 6 and e["trial_id"] == worst and e["state"] == 1, lower)
    assert f"trial {worst}" in refused(room, capsys)
    assert main(["export", room.root.name, "--trial", str(ranking(room)[0]), "-o", "-"]) == 0


def test_a_worse_value_of_a_bad_trial_changes_nothing(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    best, worst = ranking(room)[0], ranking(room)[-1]

    def raise_it(entry: dict[str, object]) -> None:
        entry["values"] = [9.5]

    change(journal_path(room), lambda e: e["op_code"] == 6 and e["trial_id"] == worst and e["state"] == 1, raise_it)
    assert main(["best", room.root.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == best


def test_a_report_that_was_changed_is_outvoted_by_the_study(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    best = ranking(room)[0]

    def lower(entry: dict[str, object]) -> None:
        entry["loss"] = 0.5

    change(room.attempt(ranking(room)[-1], 1).reports, lambda e: bool(e["final"]), lower)
    assert main(["best", room.root.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == best


def test_hyperparameters_that_were_not_trained_with_are_not_exported(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    best = ranking(room)[0]

    def other(entry: dict[str, object]) -> None:
        entry["param_value_internal"] = 0.05

    change(journal_path(room), lambda e: e["op_code"] == 5 and e["trial_id"] == best, other)
    assert "optimizer.lr is 0.05 in the study" in refused(room, capsys)


@pytest.mark.parametrize("state", [2, 3])
def test_a_winner_that_the_study_calls_failed_is_not_passed_over(
    room: Room, capsys: pytest.CaptureFixture[str], state: int
) -> None:
    best = ranking(room)[0]

    def fail(entry: dict[str, object]) -> None:
        entry["state"] = state

    change(journal_path(room), lambda e: e["op_code"] == 6 and e["trial_id"] == best and e["state"] == 1, fail)
    assert "has completed" in refused(room, capsys)


def test_a_study_that_lost_its_end_names_no_winner(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    best, journal = ranking(room)[0], journal_path(room)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    created = [at for at, entry in enumerate(lines) if entry["op_code"] == 4]
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in lines[: created[best]]))
    assert f"trial {best}" in refused(room, capsys)
