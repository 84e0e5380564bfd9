"""Whatever stands in a file's place is a value, a damage with its reason, or nothing; it raises and awaits nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import reading
from trainer.contract import (
    ContractError,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    TrialSpec,
    WorkerExit,
    decode,
    encode,
    read_exit,
    read_message,
    read_stop,
)
from trainer.reading import Damage, DamageKind, json_object, read, read_json, read_object, read_text
from trainer.room import Room, Tail

DEEP = "[" * 100_000 + "]" * 100_000
OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a directory": Path.mkdir,
    "a loop": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
}
TEXTS = {
    "no UTF-8": b"\xff\xfe{}",
    "NUL": b"\0\0\0",
    "empty": b"",
    "a list": b"[1, 2, 3]",
    "a text": b'"x"',
    "a number": b"7",
    "null": b"null",
    "not a number": b"NaN",
    "huge": b"9" * 5000,
    "deep": DEEP.encode(),
    "deep object": ('{"a":' * 50_000).encode(),
    "torn": b'{"v": 1, "kind": "comp',
}


@pytest.mark.parametrize("make", OBSTACLES.values(), ids=OBSTACLES)
def test_what_is_no_file_is_a_damage_and_is_not_waited_for(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "outcome.json"
    make(path)
    for value in (read(path, str), read_object(path), read_message(Outcome, path), read_stop(path), read_exit(path)):
        assert isinstance(value, Damage)
        assert value.kind is DamageKind.NO_FILE
    assert read_text(path) is None
    assert read_json(path) is None
    tail = Tail(path)
    assert tail.lines() == []
    assert tail.damage is not None


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_no_message_is_a_damage_with_a_reason(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for value in (read_object(path), read_message(Outcome, path), read_message(TrialSpec, path), read_exit(path)):
        assert isinstance(value, Damage)
        assert value.reason
        assert "\n" not in str(value)
    assert isinstance(read_stop(path), Damage)


def test_an_absent_file_is_neither(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "absent", tmp_path / "file" / "below", tmp_path / "a\0b"):
        assert read(path, str) is None
        assert read_message(Outcome, path) is None


def test_an_error_that_may_pass_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*args: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "open", stale)
    with pytest.raises(OSError, match="Stale"):
        read(tmp_path / "file", str)


def test_a_file_is_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 2**40)
    value = reading.read_bytes(path, 1000)
    assert isinstance(value, Damage)
    assert value.kind is DamageKind.TOO_LARGE


WHOLE = json.loads(encode(Outcome(OutcomeKind.COMPLETED, scores={"a": 1.0})))
WRONG: dict[str, list[object]] = {
    "step": ["x", 1.5, True, -1, 10**30, None],
    "seconds": [[], {}, "x", 10**400],
    "scores": [[], "x", {"a": []}, 3],
    "kind": ["other", 7, None, []],
    "reason": [5, None, []],
    "cause": ["x", 4],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_field_of_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(ContractError):
        decode(Outcome, json.dumps({**WHOLE, key: value}))


@pytest.mark.parametrize("value", [[], "x", 3, {"$float": "1"}])
def test_a_configuration_that_is_no_mapping_is_refused(value: object) -> None:
    spec = json.loads(encode(TrialSpec("s", 0, 1, "w0001", {}, 10)))
    with pytest.raises(ContractError):
        decode(TrialSpec, json.dumps({**spec, "config": value}))
    with pytest.raises(ContractError):
        decode(TrialSpec, json.dumps({**spec, "components": "torch"}))


def test_whole_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "outcome").write_text(encode(Outcome(OutcomeKind.STOPPED, "why", cause=StopCause.PAUSED)))
    (tmp_path / "stop").write_text("pruned\nworse than the others\nby far")
    (tmp_path / "exit").write_text(json.dumps({"reason": "idle", "node": "n1", "signalled": False, "failed": True}))
    assert read_message(Outcome, tmp_path / "outcome") == Outcome(OutcomeKind.STOPPED, "why", cause=StopCause.PAUSED)
    assert read_stop(tmp_path / "stop") == (StopCause.PRUNED, "worse than the others\nby far")
    assert read_exit(tmp_path / "exit") == WorkerExit("idle", "n1", signalled=False, failed=True)


def test_the_reason_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="a list in place of an object"):
        json_object("[]")
    report = json.loads(encode(Report(1, 1, 1, 0, 1.0, 1.0, 1.0, 1.0, 1.0)))
    del report["loss"]
    with pytest.raises(ContractError, match="loss"):
        decode(Report, json.dumps(report))


@pytest.mark.parametrize(
    "name", ["..", "0001", "7", "00007x", "99999999999999999999", "1e3", "²", "\x1b[31m", "00000007"]
)
def test_directories_of_other_names_are_no_trials(tmp_path: Path, name: str) -> None:
    room = Room(tmp_path)
    room.trial(7).mkdir(parents=True)
    if name != "..":
        (tmp_path / "trials" / name).mkdir()
    assert room.trials() == [7]


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 30, "١٢", "\0"])
def test_behind_a_damaged_fence_no_report_counts(tmp_path: Path, text: str) -> None:
    attempt = Room(tmp_path).attempt(0, 1)
    attempt.path.mkdir(parents=True)
    assert attempt.counted() is None
    attempt.fence.write_text(text)
    assert isinstance(attempt.read_fence(), Damage)
    assert attempt.counted() == 0
    assert attempt.resume_point() == attempt.fenced
