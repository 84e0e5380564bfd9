"""What every `Channel` must keep, over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.channel import RoomChannel
from sweep.launchapi import Runs
from sweep.ports import Channel
from sweep.wandbchannel import WandbChannel
from tests.launchfakes import FakeLaunchApi
from trainer.contract import Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode, encode
from trainer.room import Room, append_line, read_text, write_atomic

SPEC = TrialSpec("s", 3, 1, "w0001", {"model": {"lora_rank": 8}}, milestone_tokens=10)
REPORT = Report(1, 2, 10, 0, 2.5, 1.0, 1e-3, 100.0, 0.5)

Make = Callable[[Room], Channel]


@pytest.fixture(params=["room", "wandb"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    if request.param == "room":
        return RoomChannel
    api = FakeLaunchApi(tmp_path_factory.mktemp("wandb"))
    return lambda room: through_wandb(room, api)


def through_wandb(room: Room, api: FakeLaunchApi) -> WandbChannel:
    """One that has looked, as the dispatcher makes it look."""
    channel = WandbChannel(room, RoomChannel(room), api, Runs(api, 0.0), lambda run: None)
    channel.runs.want("jobs", ["run-1"])
    channel.runs.look()
    return channel


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def worker_reports(room: Room, report: Report, torn: bool = False) -> None:
    """What a worker would do."""
    path = room.attempt(3, 1).reports
    with path.open("a") as file:
        if torn:
            file.write(encode(report)[:20])
        else:
            append_line(file, encode(report))


def test_an_assignment_reaches_its_worker_and_is_safe_to_repeat(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    make(room).assign(replace(SPEC, milestone_tokens=99))
    assert decode(TrialSpec, read_text(room.attempt(3, 1).spec) or "") == SPEC, "the first word stands"
    assert room.worker("w0001").assignments() == [(3, 1)]
    attempts, workers = channel.observe([3], ["w0001"])
    (sight,) = attempts[3]
    assert (sight.number, sight.worker, sight.delivered, sight.outcome) == (1, "w0001", True, None)
    assert workers["w0001"].assigned == 1


def test_a_specification_that_never_reached_its_worker_is_seen_as_such(make: Make, room: Room) -> None:
    write_atomic(room.attempt(3, 1).spec, encode(SPEC))
    attempts, _ = make(room).observe([3], ["w0001"])
    assert not attempts[3][0].delivered


def test_reports_are_shown_once_and_to_a_restarted_controller_again(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    worker_reports(room, REPORT)
    assert channel.observe([3], [])[0][3][0].reports == (REPORT,)
    assert channel.observe([3], [])[0][3][0].reports == ()
    second = replace(REPORT, milestone=2, tokens=20)
    worker_reports(room, second)
    assert channel.observe([3], [])[0][3][0].reports == (second,)
    assert make(room).observe([3], [])[0][3][0].reports == (REPORT, second)


def test_a_report_being_written_is_shown_when_it_is_whole(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    worker_reports(room, REPORT, torn=True)
    assert channel.observe([3], [])[0][3][0].reports == ()
    with room.attempt(3, 1).reports.open("a") as file:
        append_line(file, encode(REPORT)[20:])
    assert channel.observe([3], [])[0][3][0].reports == (REPORT,)


def test_an_outcome_is_never_seen_before_the_reports_behind_it(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    worker_reports(room, REPORT)
    write_atomic(room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED)))
    (sight,) = channel.observe([3], [])[0][3]
    assert sight.outcome == Outcome(OutcomeKind.COMPLETED)
    assert sight.reports == (REPORT,)


def test_an_outcome_that_cannot_be_read_fails_the_attempt(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    write_atomic(room.attempt(3, 1).outcome, '{"v": 99}')
    outcome = channel.observe([3], [])[0][3][0].outcome
    assert outcome is not None
    assert outcome.kind is OutcomeKind.FAILED
    assert "schema version 99" in outcome.reason


def test_the_first_stop_stands(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    channel.stop(3, 1, StopCause.PRUNED, "worse: 3 of 4")
    make(room).stop(3, 1, StopCause.INTERRUPTED, "later")
    (sight,) = channel.observe([3], [])[0][3]
    assert (sight.stop, sight.stop_reason) == (StopCause.PRUNED, "worse: 3 of 4")


def test_a_drain_and_a_beat_are_seen(make: Make, room: Room) -> None:
    channel = make(room)
    channel.drain("w0001")
    channel.drain("w0001")
    seen = channel.observe([], ["w0001"])[1]["w0001"]
    assert (seen.draining, seen.beat) == (True, None)
    write_atomic(room.worker("w0001").beat, "7")
    first = channel.observe([], ["w0001"])[1]["w0001"].beat
    assert first is not None
    assert channel.observe([], ["w0001"])[1]["w0001"].beat == first
    write_atomic(room.worker("w0001").beat, "8")
    assert channel.observe([], ["w0001"])[1]["w0001"].beat not in (first, None)


def test_attempts_are_shown_in_order(make: Make, room: Room) -> None:
    channel = make(room)
    for number in (2, 10, 1):
        channel.assign(replace(SPEC, attempt=number))
    assert [sight.number for sight in channel.observe([3], [])[0][3]] == [1, 2, 10]


def test_a_wait_ends_early_when_an_attempt_ends_or_a_worker_gets_ready(make: Make, room: Room) -> None:
    class Ticks:
        """A clock on which something happens at a moment."""

        def __init__(self, happens: Callable[[], None]) -> None:
            self.time, self.happens = 0.0, happens

        def now(self) -> float:
            return self.time

        def sleep(self, seconds: float) -> None:
            self.time += seconds
            if 0.1 < self.time < 0.1 + 1.5 * seconds:
                self.happens()

    channel = make(room)
    channel.assign(SPEC)
    channel.observe([3], ["w0001"])
    idle = Ticks(lambda: None)
    channel.wait(idle, 2.0)
    assert idle.time == pytest.approx(2.0, abs=0.02)
    for happening in (
        lambda: write_atomic(room.worker("w0001").beat, "1"),
        lambda: write_atomic(room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED))),
    ):
        channel.observe([3], ["w0001"])
        clock = Ticks(happening)
        channel.wait(clock, 2.0)
        assert clock.time < 0.2
    channel.observe([3], ["w0001"])
    nothing_left = Ticks(lambda: None)
    channel.wait(nothing_left, 2.0)
    assert nothing_left.time == pytest.approx(2.0, abs=0.02), "what has been seen wakes nobody again"


def test_what_a_fenced_out_attempt_writes_does_not_count(make: Make, room: Room) -> None:
    """It was taken for lost; its worker runs on, in this controller's time and in the next one's."""
    channel = make(room)
    channel.assign(SPEC)
    worker_reports(room, REPORT)
    channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    worker_reports(room, replace(REPORT, milestone=2))
    write_atomic(room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED)))
    for one in (channel, make(room)):
        first, second = one.observe([3], ["w0002"])[0][3]
        assert [report.milestone for report in first.reports] == [1]
        assert (second.number, second.outcome) == (2, None), "the last attempt decides"
    assert room.worker("w0001").drain.exists(), "it has nothing left to do"


def test_an_attempt_with_an_outcome_needs_no_fence(make: Make, room: Room) -> None:
    channel = make(room)
    channel.assign(SPEC)
    write_atomic(room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.STOPPED, cause=StopCause.PREEMPTED)))
    channel.assign(replace(SPEC, attempt=2))
    assert not room.attempt(3, 1).fence.exists()
    assert not room.worker("w0001").drain.exists()
