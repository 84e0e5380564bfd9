"""`sweep doctor --room`: what is damaged is listed, the study is rebuilt, and the winner stays the winner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.main import main
from sweep.controller.ledger import ledger_path
from sweep.model.effects import Finish
from sweep.model.states import Finished
from sweep.report.reader import open_reader
from sweep.wiring.room_check import Mend, check_room
from sweep.wiring.room_repair import repair_room
from sweep.wiring.rooms import controller_lock, journal_path
from tests.helpers.played_rooms import KINDS, Played, copy_room, make
from trainer.room import Room, hold


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Room]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: make(kind, folder / kind) for kind in KINDS}


@pytest.fixture
def copy(sources: dict[str, Room], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Room]:
    def make_copy(kind: str) -> Room:
        monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
        return copy_room(sources[kind], tmp_path / "rooms")

    return make_copy


def outline(room: Room) -> list[tuple[Any, ...]]:
    """What stays the same of every trial when a study is rebuilt."""
    rows = open_reader(room).state().rows
    return [(row.number, row.state, dict(row.params), row.value, row.final, row.tokens) for row in rows]


def files(room: Room) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(room.root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_room_has_nothing_to_mend(copy: Callable[[str], Room], kind: str) -> None:
    room = copy(kind)
    before = files(room)
    assert check_room(room) == []
    assert main(["doctor", "--room", room.root.name]) == 0
    assert files(room) == before
    assert list(repair_room(room)) == []


def torn(data: bytes, at: int) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:at], lines[at][:20], *lines[at + 1 :]])


JOURNALS: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "torn first": lambda data: torn(data, 0),
    "torn in the middle": lambda data: torn(data, data.count(b"\n") // 2),
    "flipped": lambda data: data[:4000] + bytes([data[4000] ^ 128]) + data[4001:],
    "end lost": lambda data: b"".join(data.splitlines(keepends=True)[:20]),
}


@pytest.mark.parametrize("change", JOURNALS.values(), ids=JOURNALS)
@pytest.mark.parametrize("kind", ["finished", "finals"])
def test_a_study_is_rebuilt_from_the_trials_own_files(
    copy: Callable[[str], Room], capsys: pytest.CaptureFixture[str], kind: str, change: Callable[[bytes], bytes | None]
) -> None:
    room = copy(kind)
    best, before, journal = open_reader(room).state().best, outline(room), journal_path(room)
    original = journal.read_bytes()
    damaged = change(original)
    if damaged is None:
        journal.unlink()
    else:
        journal.write_bytes(damaged)
    if change is not JOURNALS["end lost"]:
        assert main(["status", room.root.name]) in (1, 2)
        said = capsys.readouterr().err
        assert "sweep doctor --room" in said
        assert len(said.strip().splitlines()) == 1
    assert [finding.mend for finding in check_room(room)] == [Mend.JOURNAL]
    assert main(["doctor", "--room", room.root.name]) == 1
    assert "study.journal" in capsys.readouterr().out
    assert main(["doctor", "--repair", "--room", room.root.name]) == 0
    assert outline(room) == before
    after = open_reader(room).state().best
    assert after is not None
    assert best is not None
    assert (after.number, after.value) == (best.number, best.value)
    kept = journal.with_name("study.journal.damaged-1")
    assert (kept.read_bytes() if damaged is not None else b"") == (damaged or b"")
    finish = Played(room).run()
    assert isinstance(finish, Finish)
    assert finish.how is Finished.DONE


@pytest.mark.parametrize("kind", ["halfway", "paused"])
def test_a_sweep_goes_on_after_its_study_was_rebuilt(
    copy: Callable[[str], Room], sources: dict[str, Room], kind: str
) -> None:
    room = copy(kind)
    known = {row[0]: row[2] for row in outline(room)}
    journal_path(room).unlink()
    list(repair_room(room))
    rebuilt = {row[0]: row[2] for row in outline(room)}
    assert rebuilt == {number: known[number] for number in room.trials()}
    finish = Played(room).run()
    assert isinstance(finish, Finish)
    assert finish.how is Finished.DONE
    rows = {row.number: row for row in open_reader(room).state().rows}
    assert sorted(rows) == list(range(len(rows)))
    assert all(row.state.is_final for row in rows.values())
    assert {number: dict(rows[number].params) for number in known if number in rows} == {
        number: params for number, params in known.items() if number in rows
    }


def test_a_trial_whose_files_tell_nothing_is_failed_and_said(copy: Callable[[str], Room]) -> None:
    room = copy("finished")
    best = open_reader(room).state().best
    assert best is not None
    lost = next(number for number in room.trials() if number != best.number)
    room.attempt(lost, 1).spec.write_bytes(b"\xff")
    journal_path(room).unlink()
    said = "\n".join(repair_room(room))
    assert f"trials {lost} are lost" in said
    rows = {row.number: row for row in open_reader(room).state().rows}
    assert rows[lost].state == "failed"
    assert "rebuilt" in rows[lost].reason
    after = open_reader(room).state().best
    assert after is not None
    assert after.number == best.number


def test_a_damaged_fence_is_raised_again_over_what_was_written(copy: Callable[[str], Room]) -> None:
    room = copy("finished")
    attempt = room.attempt(0, 1)
    attempt.fence.write_text("x")
    assert [finding.mend for finding in check_room(room)] == [Mend.FENCE]
    list(repair_room(room))
    assert attempt.counted() == attempt.reports.stat().st_size
    assert attempt.fence.with_name("fence.damaged-1").read_text() == "x"


@pytest.mark.parametrize("name", ["outcome.json", "reports.jsonl", "stop", "steps.jsonl"])
def test_what_is_no_file_is_set_aside(copy: Callable[[str], Room], name: str) -> None:
    room = copy("finished")
    path = room.attempt(0, 1).path / name
    path.unlink(missing_ok=True)
    path.mkdir()
    assert [finding.damage.path for finding in check_room(room)] == [path]
    list(repair_room(room))
    assert not path.exists()
    assert path.with_name(f"{name}.damaged-1").is_dir()
    assert check_room(room) == []


def test_one_trial_s_damage_costs_that_trial_a_note(copy: Callable[[str], Room], capsys: Any) -> None:
    room = copy("finished")
    best = open_reader(room).state().best
    assert best is not None
    other = next(number for number in room.trials() if number != best.number)
    room.attempt(other, 1).outcome.write_text("[1, 2]")
    room.attempt(other, 1).spec.write_text("[" * 100_000)
    assert main(["status", room.root.name]) == 0
    said = capsys.readouterr().out
    assert f"damaged: trial {other}: " in said
    assert "outcome.json" in said
    assert "spec.json" in said
    assert main(["best", room.root.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == best.number


def test_a_repair_needs_the_room_for_itself(copy: Callable[[str], Room]) -> None:
    room = copy("finished")
    with hold(controller_lock(room), "another"):
        assert main(["doctor", "--repair", "--room", room.root.name]) == 1
    assert main(["doctor", "--repair"]) == 2
    assert main(["doctor", "--room", "nothing"]) == 2


@pytest.mark.parametrize("text", ["[1]", '{"v": 1}', "x", "[" * 100_000, '{"v": 1, "name": "s", "queue": 3}'])
def test_damaged_settings_are_one_sentence_for_every_verb(
    copy: Callable[[str], Room], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    room = copy("finished")
    room.sweep.write_text(text)
    for verb in ("status", "watch", "best", "export", "report", "logs", "resume", "stop"):
        assert main([verb, room.root.name]) == 2
        said = capsys.readouterr().err
        assert "sweep.json" in said
        assert len(said.strip().splitlines()) == 1
    assert main(["doctor", "--room", room.root.name]) == 1
    assert "sweep.json" in capsys.readouterr().out


def test_leftovers_of_killed_processes_are_listed_and_removed(copy: Callable[[str], Room]) -> None:
    room = copy("finished")
    left = room.attempt(0, 1).path / f".outcome.json.{'ab' * 8}"
    left.write_text("{")
    os.utime(left, (0, 0))
    assert [finding.mend for finding in check_room(room)] == [Mend.REMOVE]
    list(repair_room(room))
    assert not left.exists()


def test_a_ledger_with_a_damaged_line_is_read_without_it(copy: Callable[[str], Room]) -> None:
    room = copy("paused")
    path = ledger_path(room)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b'{"trial": []}\n', *lines]))
    assert [finding.damage.line for finding in check_room(room)] == [1]
    assert main(["report", room.root.name, "-o", str(room.root.parent / "report.html")]) == 0


@pytest.mark.parametrize("data", [None, b"\xff", b"[1", b"- 1\n- 2\n", b"7", b"[" * 5000, b"a: \0"], ids=repr)
def test_a_damaged_recipe_is_one_sentence_where_it_is_needed(
    copy: Callable[[str], Room], capsys: pytest.CaptureFixture[str], data: bytes | None
) -> None:
    room = copy("finished")
    recipe = room.root / "recipe.yaml"
    recipe.unlink()
    if data is not None:
        recipe.write_bytes(data)
    assert main(["status", room.root.name]) == 0
    capsys.readouterr()
    for words in (["best", room.root.name], ["export", room.root.name, "-o", "-"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "recipe.yaml" in said
        assert len(said.strip().splitlines()) == 1
