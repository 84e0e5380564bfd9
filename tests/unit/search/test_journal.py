"""A journal that is damaged: the line is named, what stands before it is whole, and a reader writes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweep.errors import ConfigError, GiveUp
from sweep.search.attributes import REASON, TOKENS
from sweep.search.journal import (
    find_damage,
    journal_storage,
    read_entries,
    reading_storage,
    replayable,
    trial_count,
    write_entries,
)
from sweep.search.journal_entries import check_entry
from sweep.search.storage import load_study


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a study with four complete trials."""
    path = tmp_path / "s" / "study.journal"
    path.parent.mkdir()
    study = optuna.create_study(storage=journal_storage(path), study_name="s")
    for number in range(4):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-5, 1e-1, log=True)
        trial.suggest_categorical("model.lora_rank", [1, 2])
        trial.report(2.0 + number, 1)
        trial.set_user_attr(REASON, "")
        trial.set_user_attr(TOKENS, 40)
        study.tell(trial, 2.0 + number)
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_whole_journal_has_no_damage(journal: Path) -> None:
    entries, damage = read_entries(journal)
    assert damage is None
    assert find_damage(journal) is None
    assert replayable(entries) == len(entries) == len(lines_of(journal))
    assert trial_count(journal, "s") == 4
    assert trial_count(journal, "other") is None


DAMAGED = {
    "torn": lambda line: line[: len(line) // 2],
    "torn with its end": lambda line: line[: len(line) // 2] + b"\n",
    "no UTF-8": lambda line: b"\xff\xfe" + line,
    "NUL": lambda line: bytes(len(line) - 1) + b"\n",
    "a list": lambda line: b"[1, 2]\n",
    "a number": lambda line: b"7\n",
    "deep": lambda line: b"[" * 50_000 + b"\n",
    "empty": lambda line: b"\n",
    "no key": lambda line: b"{}\n",
    "an unknown operation": lambda line: line.replace(b'"op_code":', b'"op_code":9'),
    "a text for a number": lambda line: line.replace(b'"op_code":', b'"op_code":"x","was":'),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("at", [0, 11])
def test_a_damaged_line_is_named_by_readers_and_the_controller(journal: Path, at: int, change: Any) -> None:
    lines = lines_of(journal)
    lines[at] = change(lines[at])
    journal.write_bytes(b"".join(lines))
    before = journal.read_bytes()
    damage = find_damage(journal)
    assert damage is not None
    assert damage.line == at + 1
    for open_it in (reading_storage, journal_storage):
        with pytest.raises(ConfigError, match=rf"study\.journal, line {at + 1}: .*sweep doctor --room s") as error:
            load_study(open_it(journal), "s").get_trials()
        assert "\n" not in str(error.value)
    assert journal.read_bytes() == before
    assert replayable(read_entries(journal)[0]) == at


@pytest.mark.parametrize("line", [b"{}\n", b'{"torn": 1\n', b"\xff\n"])
def test_a_controller_does_not_append_behind_a_last_line_that_is_damaged(journal: Path, line: bytes) -> None:
    with journal.open("ab") as file:
        file.write(line)
    with pytest.raises(ConfigError, match="sweep doctor"):
        load_study(journal_storage(journal), "s")


def test_a_last_line_without_its_end_is_being_written(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert find_damage(journal) is None
    assert len(load_study(reading_storage(journal), "s").trials) == 4


def test_a_reader_makes_no_journal(journal: Path) -> None:
    journal.unlink()
    with pytest.raises(GiveUp, match=r"study\.journal is gone.*sweep doctor --room s"):
        reading_storage(journal)
    assert not journal.exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["directory", "loop"])
def test_what_is_no_journal_is_one_sentence(journal: Path, make: Any) -> None:
    journal.unlink()
    make(journal)
    with pytest.raises(ConfigError, match="sweep doctor"):
        reading_storage(journal)
    with pytest.raises((ConfigError, OSError)):
        journal_storage(journal)


def test_an_empty_journal_holds_no_study_and_says_what_can_be_done(journal: Path) -> None:
    journal.write_bytes(b"")
    with pytest.raises(GiveUp, match="no study named s; `sweep doctor --room s`"):
        load_study(reading_storage(journal), "s")


WRONG = [
    {"op_code": 6, "trial_id": "0", "state": 1, "values": [1.0]},
    {"op_code": 6, "trial_id": 0, "state": 1, "values": ["1.0"]},
    {"op_code": 6, "trial_id": 0, "state": 1, "values": 1.0},
    {"op_code": 6, "trial_id": 0, "state": True, "values": None},
    {"op_code": 7, "trial_id": 0, "step": "1", "intermediate_value": 1.0},
    {"op_code": 7, "trial_id": 0, "step": 1, "intermediate_value": "x"},
    {"op_code": 8, "trial_id": 0, "user_attr": {"final": 3}},
    {"op_code": 8, "trial_id": 0, "user_attr": {"stopped": {"milestone": 1}}},
    {"op_code": 8, "trial_id": 0, "user_attr": {"tokens": -1}},
    {"op_code": 8, "trial_id": 0, "user_attr": []},
    {"op_code": 5, "trial_id": 0, "param_name": 5, "param_value_internal": 1, "distribution": "{}"},
]


@pytest.mark.parametrize("entry", WRONG)
def test_an_entry_of_other_types_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        check_entry({**entry, "worker_id": "w"})


def test_entries_are_written_as_they_were_read(journal: Path) -> None:
    copy = journal.with_name("copy")
    write_entries(copy, read_entries(journal)[0])
    assert [json.loads(line) for line in lines_of(copy)] == [json.loads(line) for line in lines_of(journal)]


def test_a_journal_that_grew_by_zeros_is_damaged_at_that_line_and_is_not_read_whole(journal: Path) -> None:
    """As a file system may leave it after a power cut."""
    lines = len(lines_of(journal))
    os.truncate(journal, 2**40)
    with pytest.raises(ConfigError, match="it has 1,048,576 bytes or more"):
        reading_storage(journal)
    entries, damage = read_entries(journal)
    assert len(entries) == lines
    assert damage is not None
