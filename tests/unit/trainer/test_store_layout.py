"""Who writes which file of a room, and how an appended file becomes objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.stores import faulty
from trainer.room import Room, write_atomic
from trainer.store import layout
from trainer.store.layout import AppendedFile, Owner, inbox_entry, join, owner, with_chunks
from trainer.store.objects import StoreError


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("sweep.json", Owner.CONTROLLER),
        ("study.journal", Owner.CONTROLLER),
        ("study.journal@3", Owner.CONTROLLER),
        ("study.journal.lock", None),
        ("controller.lock", None),
        ("controller.lease", None),
        ("control", None),
        (".tags", None),
        ("trials/00042/1/spec.json", Owner.CONTROLLER),
        ("trials/00042/1/stop", Owner.CONTROLLER),
        ("trials/00042/1/fence", Owner.CONTROLLER),
        ("trials/00042/1/fenced.pt", None),
        ("trials/00042/1/reports.jsonl", Owner.WORKER),
        ("trials/00042/1/reports.jsonl@1", Owner.WORKER),
        ("trials/00042/1/outcome.json", Owner.WORKER),
        ("trials/00042/1/adapter/adapter_model.safetensors", Owner.WORKER),
        ("trials/00042/1/scratch/x", None),
        ("trials/00042/1/.checkpoint.pt.77", None),
        ("trials/00042/asked", Owner.CONTROLLER),
        ("trials/00042/told.json", Owner.CONTROLLER),
        ("trials/00042/.told.json.77", None),
        ("evaluations/trials/00042/1/outcome.json", None),
        ("workers/w0001/inbox/00042-1", Owner.CONTROLLER),
        ("workers/w0001/drain", Owner.CONTROLLER),
        ("workers/w0001/job.json", Owner.CONTROLLER),
        ("workers/w0001/beat", Owner.WORKER),
        ("workers/w0001/lock", None),
        ("workers/w0001/claim", None),
        ("submitit/1_log.out", None),
    ],
)
def test_every_file_has_one_writer(key: str, whose: Owner | None) -> None:
    assert owner(key) is whose


def test_an_appended_file_is_put_up_to_its_last_whole_line(tmp_path: Path) -> None:
    store, path = faulty("memory://appended-line"), tmp_path / "reports.jsonl"
    file = AppendedFile(path, "r.jsonl")
    assert not file.put(store), "there is no file yet"
    path.write_text("one\ntw")
    assert file.put(store)
    assert store.get(["r.jsonl"]) == {"r.jsonl": b"one\n"}
    assert not file.put(store), "nothing new"
    path.write_text("one\ntwo\n")
    assert file.put(store)
    assert store.get(["r.jsonl"]) == {"r.jsonl": b"one\ntwo\n"}


def test_a_long_file_is_put_in_chunks_of_which_only_the_last_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK", 10)
    store, path = faulty("memory://appended-chunks"), tmp_path / "reports.jsonl"
    file = AppendedFile(path, "a/reports.jsonl")
    text = b""
    for number in range(30):
        text += b"line %d\n" % number
        path.write_bytes(text)
        store.log.clear()
        assert file.put(store)
        assert len(store.log) <= 2, "a line of up to eight bytes touches two chunks of ten at most"
        contents = store.get(store.list())
        assert join(contents) == {"a/reports.jsonl": text}
    assert with_chunks(["a/reports.jsonl"], store.list()) == list(store.list())


@pytest.mark.parametrize("lose_answer", [False, True])
@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_put_that_failed_half_way_goes_on(
    fails: int, lose_answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK", 4)
    path = tmp_path / "log"
    path.write_bytes(b"0123456789\n")
    store = faulty(f"memory://appended-fail-{fails}-{lose_answer}")
    store.fail_at, store.lose_answer = fails, lose_answer
    file = AppendedFile(path, "log")
    with pytest.raises(StoreError):
        file.put(store)
    assert file.put(store)
    assert join(store.get(store.list())) == {"log": b"0123456789\n"}


def test_chunks_are_put_together_as_far_as_they_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK", 4)
    assert join({"log": b"0123", "log@1": b"45\n"}) == {"log": b"012345\n"}
    assert join({"log": b"01", "log@1": b"45\n"}) == {"log": b"01"}, "read before it was full"
    assert join({"log": b"0123", "log@2": b"x"}) == {"log": b"0123"}
    assert join({"log@1": b"x"}) == {}
    assert join({"spec.json": b"0123", "beat": b"7"}) == {"spec.json": b"0123", "beat": b"7"}
    many = {"log" + (f"@{number}" if number else ""): b"%04d" % number for number in range(12)}
    assert join(many)["log"] == b"".join(b"%04d" % number for number in range(12)), "in the order of their numbers"


def test_an_inbox_entry_names_the_control_files(tmp_path: Path) -> None:
    attempt = Room(tmp_path).attempt(1, 1)
    assert inbox_entry(attempt) == b""
    write_atomic(attempt.fence, "12")
    assert inbox_entry(attempt) == b"fence\n"
    write_atomic(attempt.stop, "pruned\nworse")
    assert inbox_entry(attempt) == b"stop\nfence\n"
