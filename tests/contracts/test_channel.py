"""The contract of every `Channel`, tested over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.controller.ports import Channel
from sweep.controller.room_channel import RoomChannel
from sweep.queues.launch.channel import WandbChannel
from sweep.queues.launch.runs import Runs
from sweep.queues.simulated.dispatcher import SimulatedChannel, SimulatedClock
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.state import SimulatedAttempt
from sweep.queues.simulated.tables import load_table
from sweep.queues.simulated.world import World
from sweep.store.channel import StoreChannel
from sweep.store.controller_sync import ControllerSync
from sweep.store.download import download_room
from tests.helpers.launch_fakes import FakeLaunchApi
from tests.helpers.tables import write_table
from trainer.contract import Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode, encode
from trainer.room import Room, append_line, read_text, write_atomic
from trainer.store.objects import open_store

CONFIG = {"model.lora_rank": 8, "optimizer.lr": 1e-3, "gradient_accumulation_steps": 1}
SPEC = TrialSpec("s", 3, 1, "w0001", CONFIG, milestone_tokens=10)
REPORT = Report(1, 2, 10, 0, 2.5, 1.0, 1e-3, 100.0, 0.5)

Make = Callable[[Room], Channel]


class Rig:
    """The worker side of a channel: does what the worker w0001 would do in a room."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.reports = 0

    def make(self) -> Channel:
        return RoomChannel(self.room)

    def report(self) -> Report:
        self.reports += 1
        report = replace(REPORT, milestone=self.reports, tokens=10 * self.reports)
        worker_reports(self.room, report)
        return report

    def finish(self) -> None:
        write_atomic(self.room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED)))

    def begin(self) -> None:
        write_atomic(self.room.worker("w0001").beat, "7")

    def wait(self, channel: Channel, happens: Callable[[], None] | None) -> float:
        """How long a wait of two seconds takes if this happens after a tenth of a second."""
        clock = Ticks(happens or (lambda: None))
        channel.wait(clock, 2.0)
        return clock.time


class Ticks:
    """A clock that calls a function after a tenth of a second."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.time, self.happens = 0.0, happens

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if 0.1 < self.time < 0.1 + 1.5 * seconds:
            self.happens()


class SimulatedRig(Rig):
    """The same for a simulated worker."""

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        table = load_table(str(write_table(room.root / "curves.npz")))
        self.world = World(table, SimulationModel(startup_seconds=10.0))
        self.world.start("w0001", 0)
        self.world.start("w0002", 1)

    def make(self) -> Channel:
        return SimulatedChannel(self.world, look_seconds=0.01)

    def report(self) -> Report:
        self.reports += 1
        self.step(lambda: len(self.attempt.reports) == self.reports)
        return self.attempt.reports[-1]

    def finish(self) -> None:
        self.step(lambda: self.attempt.outcome is not None)

    def begin(self) -> None:
        self.step(lambda: self.world.workers["w0001"].ready)

    def wait(self, channel: Channel, happens: Callable[[], None] | None) -> float:
        if happens is not None:
            self.world.advance(self.world.next_event() - 0.1)
        began = self.world.now
        channel.wait(SimulatedClock(self.world), 2.0)
        return self.world.now - began

    @property
    def attempt(self) -> SimulatedAttempt:
        return self.world.attempts[3][1]

    def step(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.world.advance(self.world.next_event())


@pytest.fixture(params=["room", "store", "wandb"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes channels over a shared directory, over a store of which each controller has a new copy, and over W&B.

    The store is a directory with the layout of a room. So these tests write and read there what a worker with a copy
    of its own would put and get.
    """

    def through_store(room: Room) -> StoreChannel:
        sync = ControllerSync(open_store(str(room.root)), Room(tmp_path_factory.mktemp("copy")))
        download_room(sync.store, sync.room)
        sync.start(continued=False)
        return StoreChannel(sync, min_interval=0.01)

    def through_wandb(room: Room) -> WandbChannel:
        """A channel that has queried W&B, as the dispatcher makes it do."""
        api = FakeLaunchApi(room.root / "wandb")
        channel = WandbChannel(room, RoomChannel(room), api, Runs(api, 0.0), lambda run: None)
        channel.runs.want("jobs", ["run-1"])
        channel.runs.look()
        return channel

    ways: dict[str, Make] = {"store": through_store, "wandb": through_wandb}
    return ways.get(request.param, RoomChannel)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    write_atomic(room.sweep, "{}")
    return room


@pytest.fixture(params=[Rig, SimulatedRig], ids=["room", "simulated"])
def rig(request: pytest.FixtureRequest, room: Room) -> Rig:
    made: Rig = request.param(room)
    return made


def worker_reports(room: Room, report: Report, torn: bool = False) -> None:
    """Append a report, or a part of it, as a worker would."""
    path = room.attempt(3, 1).reports
    with path.open("a") as file:
        if torn:
            file.write(encode(report)[:20])
        else:
            append_line(file, encode(report))


def test_an_assignment_reaches_its_worker_and_is_safe_to_repeat(rig: Rig) -> None:
    channel = rig.make()
    channel.assign(SPEC)
    rig.make().assign(replace(SPEC, milestone_tokens=99))
    attempts, workers = channel.observe([3], ["w0001"])
    (attempt,) = attempts[3]
    assert (attempt.number, attempt.worker, attempt.delivered, attempt.outcome) == (1, "w0001", True, None)
    assert workers["w0001"].assigned == 1


def test_the_first_specification_stands(make: Make, room: Room) -> None:
    make(room).assign(SPEC)
    make(room).assign(replace(SPEC, milestone_tokens=99))
    assert decode(TrialSpec, read_text(room.attempt(3, 1).spec) or "") == SPEC
    assert room.worker("w0001").assignments() == [(3, 1)]


def test_a_specification_that_never_reached_its_worker_is_seen_as_such(make: Make, room: Room) -> None:
    write_atomic(room.attempt(3, 1).spec, encode(SPEC))
    attempts, _ = make(room).observe([3], ["w0001"])
    assert not attempts[3][0].delivered


def test_reports_are_shown_once_and_to_a_restarted_controller_again(rig: Rig) -> None:
    channel = rig.make()
    channel.assign(SPEC)
    first = rig.report()
    assert channel.observe([3], [])[0][3][0].reports == (first,)
    assert channel.observe([3], [])[0][3][0].reports == ()
    second = rig.report()
    assert channel.observe([3], [])[0][3][0].reports == (second,)
    assert rig.make().observe([3], [])[0][3][0].reports == (first, second)


def test_a_report_being_written_is_shown_when_it_is_whole(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    worker_reports(room, REPORT, torn=True)
    assert channel.observe([3], [])[0][3][0].reports == ()
    with room.attempt(3, 1).reports.open("a") as file:
        append_line(file, encode(REPORT)[20:])
    assert channel.observe([3], [])[0][3][0].reports == (REPORT,)


def test_an_outcome_is_never_seen_before_the_reports_behind_it(rig: Rig) -> None:
    channel = rig.make()
    channel.assign(SPEC)
    report = rig.report()
    rig.finish()
    (attempt,) = channel.observe([3], [])[0][3]
    assert attempt.outcome is not None
    assert attempt.outcome.kind is OutcomeKind.COMPLETED
    assert attempt.reports[0] == report


def test_an_outcome_that_cannot_be_read_fails_the_attempt(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    write_atomic(room.attempt(3, 1).outcome, '{"v": 99}')
    outcome = channel.observe([3], [])[0][3][0].outcome
    assert outcome is not None
    assert outcome.kind is OutcomeKind.FAILED
    assert "schema version 99" in outcome.reason


def test_the_first_stop_stands(rig: Rig) -> None:
    channel = rig.make()
    channel.assign(SPEC)
    channel.stop(3, 1, StopCause.PAUSED, "worse: 3 of 4")
    rig.make().stop(3, 1, StopCause.INTERRUPTED, "later")
    (attempt,) = channel.observe([3], [])[0][3]
    assert (attempt.stop, attempt.stop_reason) == (StopCause.PAUSED, "worse: 3 of 4")


def test_a_drain_and_a_beat_are_seen(rig: Rig) -> None:
    channel = rig.make()
    assert channel.observe([], ["w0001"])[1]["w0001"].beat is None
    channel.assign(SPEC)
    rig.begin()
    assert channel.observe([], ["w0001"])[1]["w0001"].beat is not None
    channel.drain("w0001")
    channel.drain("w0001")
    seen = channel.observe([], ["w0001"])[1]["w0001"]
    assert seen.draining


def test_a_beat_changes_only_with_the_worker_s(make: Make, room: Room) -> None:
    channel = make(room)
    write_atomic(room.worker("w0001").beat, "7")
    beat = channel.observe([], ["w0001"])[1]["w0001"].beat
    assert beat is not None
    assert channel.observe([], ["w0001"])[1]["w0001"].beat == beat
    write_atomic(room.worker("w0001").beat, "8")
    assert channel.observe([], ["w0001"])[1]["w0001"].beat not in (None, beat)


def test_attempts_are_shown_in_order(make: Make, room: Room) -> None:
    channel = make(room)
    for number in (2, 10, 1):
        channel.assign(replace(SPEC, attempt=number))
    assert [attempt.number for attempt in channel.observe([3], [])[0][3]] == [1, 2, 10]


def test_a_wait_ends_early_when_an_attempt_ends_or_a_worker_gets_ready(rig: Rig) -> None:
    channel = rig.make()
    channel.assign(SPEC)
    channel.observe([3], ["w0001"])
    assert rig.wait(channel, None) == pytest.approx(2.0, abs=0.02)
    for happening in (rig.begin, rig.finish):
        channel.observe([3], ["w0001"])
        assert rig.wait(channel, happening) < 0.2
    rig.finish()
    channel.observe([3], ["w0001"])
    assert rig.wait(channel, None) == pytest.approx(2.0, abs=0.02), "a file that was observed before ends no wait"


def test_what_a_fenced_out_attempt_writes_does_not_count(rig: Rig) -> None:
    """It was taken for lost, but its worker still runs, under this controller and under the next one."""
    channel = rig.make()
    channel.assign(SPEC)
    rig.report()
    channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    if not isinstance(rig, SimulatedRig):  # a simulated worker cannot
        rig.report()
        rig.finish()
    for observer in (channel, rig.make()):
        first, second = observer.observe([3], ["w0002"])[0][3]
        assert [report.milestone for report in first.reports] == [1]
        assert (second.number, second.outcome) == (2, None), "the last attempt decides"
    assert channel.observe([3], ["w0001"])[1]["w0001"].draining, "it has nothing left to do"


def test_a_worker_that_never_began_its_attempt_is_not_let_go(make: Make, room: Room) -> None:
    """It failed to start, which is counted; or it is late, and will see the fence."""
    channel = make(room)
    channel.assign(SPEC)
    channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    assert room.attempt(3, 1).fence.exists()
    assert not room.worker("w0001").drain.exists()


def test_an_attempt_with_an_outcome_needs_no_fence(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    write_atomic(room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.STOPPED, cause=StopCause.PREEMPTED)))
    channel.assign(replace(SPEC, attempt=2))
    assert not room.attempt(3, 1).fence.exists()
    assert not room.worker("w0001").drain.exists()
