"""What Launch's dispatcher does with planned workers, and how often it asks."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from sweep.controller.ports import WorkerSpec
from sweep.model.states import JobState
from tests.helpers.dispatcher_contract import begin, give, launched, state
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer.contract import JOB_KEY
from trainer.room import Room, write_atomic


def test_a_planned_worker_is_handed_over_once_it_has_trials_and_only_once(tmp_path: Path) -> None:
    """Where a job carries its first trials."""
    room, api = Room(tmp_path / "room"), FakeLaunchApi(tmp_path / "wandb")
    room.root.mkdir()
    worker = WorkerSpec("w0001", 3)
    launched(room, api).start([worker])
    launched(room, api).start([worker])
    assert (state(launched(room, api), "w0001"), api.items()) == (JobState.PLANNED, [])
    give(room, worker)
    for _ in range(3):
        launched(room, api).start([worker])
    assert state(launched(room, api), "w0001") is JobState.PENDING
    (item,) = api.items()
    job = json.loads((api.root / "items" / item / "spec").read_text())
    assert job["run"] == "run-3"
    assert [spec["trial"] for spec in job["config"][JOB_KEY]["specs"]] == [3]


def test_a_planned_worker_that_is_cancelled_is_never_handed_over(tmp_path: Path) -> None:
    room, api = Room(tmp_path / "room"), FakeLaunchApi(tmp_path / "wandb")
    room.root.mkdir()
    worker = WorkerSpec("w0001", 3)
    dispatcher = launched(room, api)
    dispatcher.start([worker])
    dispatcher.cancel(["w0001"])
    give(room, worker)
    dispatcher.start([worker])
    assert (state(launched(room, api), "w0001"), api.items()) == (JobState.GONE, [])


def test_a_poll_asks_once_however_many_workers_there_are(tmp_path: Path) -> None:
    room, api = Room(tmp_path / "room"), FakeLaunchApi(tmp_path / "wandb")
    room.root.mkdir()
    dispatcher = launched(room, api)
    begin(dispatcher, room, *(WorkerSpec(f"w{n:04d}", n) for n in range(1, 60)))
    time.sleep(0.03)
    before = len((api.root / "requests").read_text().splitlines())
    dispatcher.poll()
    asked = (api.root / "requests").read_text().splitlines()[before:]
    assert [line.split()[0] for line in asked] == ["runs", "item_state"], "and of one that waits, in turn"


def test_who_only_looks_writes_nothing_and_asks_nobody(tmp_path: Path) -> None:
    room, api = Room(tmp_path / "room"), FakeLaunchApi(tmp_path / "wandb")
    room.root.mkdir()
    begin(launched(room, api), room, WorkerSpec("w0001", 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    looker = replace(launched(room, api), reads=True)
    assert state(looker, "w0001") is JobState.PENDING
    write_atomic(room.worker("w0001").exit, '{"reason": "it was drained"}')
    assert looker.poll()["w0001"].reason == "it was drained"
    room.worker("w0001").exit.unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
