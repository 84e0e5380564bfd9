"""What every `Dispatcher` must keep: a test module imports these tests, and makes dispatchers in a fixture `make`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweep.controller.ports import Dispatcher, WorkerSpec
from sweep.controller.room_channel import RoomChannel
from sweep.model.states import JobState
from sweep.queues.launch.dispatcher import LaunchDispatcher
from sweep.queues.launch.runs import Runs
from sweep.queues.launch.section import LaunchQueue
from sweep.queues.simulated.dispatcher import SimulatedDispatcher
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import load_table
from sweep.queues.simulated.world import World
from tests.helpers.launch_fakes import FakeLaunchApi
from tests.helpers.tables import write_table
from tests.helpers.waiting import until
from trainer.contract import JOB_KEY, Tracking, TrialSpec, encode
from trainer.room import Room, held, read_text, write_atomic

# Makes a dispatcher on a room; called again, it is what a restarted controller would make.
Make = Callable[[Room], Dispatcher]


def launched(room: Room, api: FakeLaunchApi) -> LaunchDispatcher:
    def payload(worker: str, specs: Sequence[TrialSpec]) -> dict[str, Any]:
        options = {"trials": 0, "idle_seconds": 20, "seconds": 1e9, "env": {}}
        raw = [json.loads(encode(spec)) for spec in specs]
        return {JOB_KEY: {"worker": worker, "room": str(room.root), "options": options, "specs": raw}}

    def run_of(worker: str, specs: Sequence[TrialSpec]) -> str:
        return specs[0].tracking.run if specs[0].tracking is not None else worker

    return LaunchDispatcher(room, LaunchQueue(), api, Runs(api, 0.02), payload, run_of, lambda run: None)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    found = Room(tmp_path / "room")
    found.root.mkdir()
    yield found
    for name in found.workers():
        write_atomic(found.worker(name).drain, "")
    until(lambda: not any(held(found.worker(name).lock) for name in found.workers()))


class Hands:
    """What happens to workers beside the dispatcher: for those that live in a room."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def until(self, condition: Callable[[], bool]) -> None:
        until(condition)

    def ready(self, name: str) -> None:
        until(self.room.worker(name).beat.exists)

    def drain(self, name: str) -> None:
        write_atomic(self.room.worker(name).drain, "")

    def kill(self, name: str) -> None:
        os.kill(int((read_text(self.room.worker(name).lock) or "").split()[0]), signal.SIGKILL)

    def identity(self, name: str) -> object:
        """Tells a worker from another of the same name."""
        time.sleep(0.3)
        return read_text(self.room.worker(name).lock)


class SimulatedHands(Hands):
    """For those that live in a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def until(self, condition: Callable[[], bool]) -> None:
        self.world.advance(self.world.now + 1000)
        assert condition()

    def ready(self, name: str) -> None:
        self.until(lambda: self.world.workers[name].ready)

    def drain(self, name: str) -> None:
        self.world.drain(name)

    def kill(self, name: str) -> None:
        self.world.kill(name)

    def identity(self, name: str) -> object:
        return self.world.workers[name]


@pytest.fixture
def hands(make: Make, room: Room) -> Hands:
    dispatcher = make(room)
    return SimulatedHands(dispatcher.world) if isinstance(dispatcher, SimulatedDispatcher) else Hands(room)


def make_world(folder: Path) -> World:
    return World(load_table(str(write_table(folder / "curves.npz"))), SimulationModel(wait_seconds=5.0))


def state(dispatcher: Dispatcher, name: str) -> JobState:
    return dispatcher.poll()[name].state


def begin(dispatcher: Dispatcher, room: Room, *workers: WorkerSpec) -> None:
    """Start them; where the queue's jobs carry their first trials, a worker is planned until it is given one."""
    dispatcher.start(workers)
    planned = [worker for worker in workers if state(dispatcher, worker.name) is JobState.PLANNED]
    for worker in planned:
        give(room, worker)
    dispatcher.start(planned)


def give(room: Room, worker: WorkerSpec) -> None:
    tracking = Tracking(f"run-{worker.place}", "online", {"entity": "team", "project": "p"})
    config = {"optimizer": {"lr": 1e-3}}
    spec = TrialSpec("s", worker.place, 1, worker.name, config, milestone_tokens=10, tracking=tracking)
    if not room.attempt(worker.place, 1).spec.exists():
        RoomChannel(room).assign(spec)


def test_nothing_was_started(make: Make, room: Room) -> None:
    assert make(room).poll() == {}


def test_a_started_worker_is_seen_at_its_place_until_it_ends(make: Make, room: Room, hands: Hands) -> None:
    dispatcher = make(room)
    begin(dispatcher, room, WorkerSpec("w0001", 0), WorkerSpec("w0002", 5))
    assert {name: job.place for name, job in dispatcher.poll().items()} == {"w0001": 0, "w0002": 5}
    assert state(dispatcher, "w0001") is not JobState.GONE, "from the moment it was started"
    hands.ready("w0001")
    assert state(dispatcher, "w0001") is JobState.RUNNING
    hands.drain("w0001")
    hands.until(lambda: state(dispatcher, "w0001") is JobState.GONE)
    assert state(dispatcher, "w0002") is not JobState.GONE


def test_start_is_safe_to_repeat_also_after_a_restart(make: Make, room: Room, hands: Hands) -> None:
    begin(make(room), room, WorkerSpec("w0001", 0))
    hands.ready("w0001")
    one = hands.identity("w0001")
    restarted = make(room)
    assert state(restarted, "w0001") is JobState.RUNNING, "adopted by its name"
    restarted.start([WorkerSpec("w0001", 0)])
    assert hands.identity("w0001") == one


def test_cancel_ends_it_and_is_safe_to_repeat(make: Make, room: Room, hands: Hands) -> None:
    dispatcher = make(room)
    begin(dispatcher, room, WorkerSpec("w0001", 0))
    hands.ready("w0001")
    make(room).cancel(["w0001"])
    hands.until(lambda: state(dispatcher, "w0001") is JobState.GONE)
    dispatcher.cancel(["w0001"])
    dispatcher.cancel(["w0099"])


def test_a_killed_worker_is_gone(make: Make, room: Room, hands: Hands) -> None:
    dispatcher = make(room)
    begin(dispatcher, room, WorkerSpec("w0001", 0))
    hands.ready("w0001")
    hands.kill("w0001")
    hands.until(lambda: state(dispatcher, "w0001") is JobState.GONE)
    assert state(make(room), "w0001") is JobState.GONE


def test_a_start_that_never_happened_is_gone(make: Make, room: Room) -> None:
    """The controller died between its intent and the start, minutes ago."""
    if isinstance(make(room), SimulatedDispatcher):
        pytest.skip("a simulated start leaves no intent behind")
    job = room.worker("w0001").job
    before = time.time() - 300
    write_atomic(job, json.dumps({"place": 2, "name": "never-submitted-w0001", "run": "run-1", "pushed": before}))
    os.utime(job, (before, before))
    found = make(room).poll()
    assert {name: (job.place, job.state) for name, job in found.items()} == {"w0001": (2, JobState.GONE)}


def test_preview_starts_nothing(make: Make, room: Room) -> None:
    text = make(room).preview([WorkerSpec("w0001", 0)])
    assert "w0001" in text
    assert make(room).poll() == {}
