"""Grace periods begin anew for a controller that was held up, and no step of the wall clock changes a duration."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sweep.controller.first_seen import FirstSeen
from sweep.model.effects import Cancel, Effect
from sweep.model.states import JobState
from sweep.queues.launch.dispatcher import LaunchDispatcher
from sweep.wiring import session
from sweep.wiring.rooms import load_settings
from sweep.wiring.simulate import Silent
from tests.helpers.hand_played import HandPlayed
from tests.helpers.kill_points import controller, make_room
from tests.helpers.waiting import until
from trainer import clock
from trainer.clock import WallAges
from trainer.contract import Outcome, OutcomeKind
from trainer.room import write_atomic

HOUR = 3600.0
SILENCE = 120.0
LAUNCH = (
    "queue=launch_local_process",
    "queue.name=q",
    "queue.query_seconds=0.01",
    "wandb.entity=team",
    "wandb.project=p",
)
STEPS = [10 * HOUR, -10 * HOUR, 300.0, -300.0]


def cancels(effects: list[Effect]) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, Cancel)]


def test_a_worker_that_is_silent_is_cancelled(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.begin()
    assert cancels(played.rounds_for(SILENCE - 10, beats=False)) == []
    assert cancels(played.rounds_for(20, beats=False)) == ["no heartbeat for 120 s"]


@pytest.mark.parametrize("suspended", [SILENCE, HOUR, 100 * HOUR])
def test_after_a_suspension_a_worker_first_gets_the_time_that_it_may_be_silent(rooms: Path, suspended: float) -> None:
    played = HandPlayed(rooms)
    played.begin()
    assert cancels(played.rounds_for(SILENCE - 20, beats=False)) == []
    played.clock.time += suspended
    assert played.rounds() == [], "it was suspended with the controller"
    assert cancels(played.rounds_for(SILENCE - 10, beats=False)) == []
    assert cancels(played.rounds_for(20, beats=False)) == ["no heartbeat for 120 s"]


def test_after_a_suspension_a_stop_and_a_start_first_get_their_time_too(rooms: Path) -> None:
    played = HandPlayed(rooms, "search.target=9.0", "search.trials=2", "queue.workers=2")
    played.begin()
    played.report(1, 1.0, trial=1, final=True)
    played.end(Outcome(OutcomeKind.COMPLETED), trial=1)
    played.rounds()  # the target is reached: trial 0 is to stop
    assert played.room.attempt(0, 1).stop.exists()
    played.clock.time += HOUR
    assert cancels(played.rounds()) == []
    assert cancels(played.rounds_for(50)) == []
    assert cancels(played.rounds_for(20)) == ["a trial did not stop within 60 s"]


def test_a_worker_that_starts_is_not_given_up_after_a_suspension(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.rounds()
    played.clock.time += 10 * HOUR
    assert played.rounds() == []
    assert cancels(played.rounds_for(610, every=20, beats=False)) == ["not ready 600 s after its start"]


def test_a_worker_that_died_is_given_up_though_every_round_is_late(rooms: Path) -> None:
    """A file system or a scheduler may take a minute for each answer; only the first late round counts as late."""
    played = HandPlayed(rooms)
    played.begin()
    reasons = []
    for _ in range(5):
        played.clock.time += SILENCE / 2
        reasons += cancels(played.rounds())
    assert reasons == ["no heartbeat for 120 s"]


def test_a_late_final_report_is_awaited_anew_after_a_suspension(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7)
    played.end(Outcome(OutcomeKind.COMPLETED))
    played.rounds()
    played.clock.time += HOUR
    assert played.rounds() == []
    played.report(2, 2.5, final=True)
    played.rounds()
    assert played.study.frozen()[0].value == 2.5


def test_what_was_seen_before_a_restart_is_forgotten() -> None:
    seen = FirstSeen(10.0)
    assert seen.since("beat", "w0001", "1") == 10.0
    seen.now = 20.0
    assert seen.since("beat", "w0001", "1") == 10.0
    seen.restart()
    assert seen.since("beat", "w0001", "1") == 20.0


# --- the wall clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_moves_no_controller_s_clock(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    here = session.BootClock()
    before, real = here.now(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert 0 <= here.now() - before < 60


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_spends_no_budget(rooms: Path, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """`search.seconds` counts from the creation; a controller reads that once, and then its own clock."""
    room = make_room(rooms, "search.seconds=600")
    settings, boot, real = load_settings(room), clock.boot_seconds(), time.time
    monkeypatch.setattr(clock, "boot_seconds", lambda: boot)
    created = session.created_at(settings)
    assert boot - 60 < created <= clock.boot_seconds()
    ages = WallAges()
    assert ages.age("sweep", settings.created) < 60
    monkeypatch.setattr(time, "time", lambda: real() + step)
    boot += 100
    assert 100 <= ages.age("sweep", settings.created) < 160


def test_a_moment_in_the_future_is_now() -> None:
    """The wall clock was set back between two controllers."""
    assert WallAges().age("sweep", time.time() + HOUR) < 60


def test_an_age_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    ages, boot, moment = WallAges(), clock.boot_seconds(), time.time()
    assert ages.age("push", moment) < 60
    monkeypatch.setattr(clock, "boot_seconds", lambda: boot + HOUR)
    assert HOUR - 1 <= ages.age("push", moment) < HOUR + 60


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_ends_no_launch_job_that_waits(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    room = make_room(rooms, *LAUNCH, "queue.pending_seconds=250")
    rounds = controller(room, Silent())
    for _ in range(5):
        rounds.step()
    dispatcher = rounds.ports.dispatcher
    assert [job.state for job in dispatcher.poll().values()] == [JobState.PENDING] * 2
    real, boot = time.time, clock.boot_seconds()
    monkeypatch.setattr(time, "time", lambda: real() + step)
    for _ in range(4):  # each asks for the item of one job
        time.sleep(0.02)
        assert [job.state for job in dispatcher.poll().values()] == [JobState.PENDING] * 2
    monkeypatch.setattr(clock, "boot_seconds", lambda: boot + 300)
    until(lambda: {job.state for job in dispatcher.poll().values()} == {JobState.GONE})  # they have waited too long


@pytest.mark.parametrize("step", STEPS)
def test_the_beat_of_another_machine_is_compared_with_no_clock_of_ours(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    room = make_room(rooms, *LAUNCH)
    dispatcher = controller(room, Silent()).ports.dispatcher
    assert isinstance(dispatcher, LaunchDispatcher)
    beat = room.worker("w0001").beat
    write_atomic(beat, "1")
    os.utime(beat, (time.time() + step, time.time() + step))
    assert dispatcher._seconds_since_beat("w0001", beat) < 60
