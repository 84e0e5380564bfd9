"""`kill -9` of the controller at every moment: each trial told once, none trained twice at a time, no report lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.model.states import Finished, Mode
from sweep.report.reader import open_reader
from tests.helpers.fakes import HOLD
from tests.helpers.kill_points import die_at_write, make_room, run_here, run_killed
from tests.helpers.sweep_checks import check_sweep, wait_for_workers
from trainer.room import Room

TRIALS = 8


def finish(rooms: Path, *overrides: str) -> list[tuple[object, ...]]:
    room = make_room(rooms, *overrides)
    assert run_here(room).how is Finished.DONE
    return outline(room)


def outline(room: Room) -> list[tuple[object, ...]]:
    rows = open_reader(room).state().rows
    return [(row.number, row.state, dict(row.params), row.value) for row in rows]


PAUSING = ("pruner=asha", "pruner.min_resource=1", "pruner.reduction_factor=2")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("more", [(), ("queue.trials_per_worker=1",), PAUSING], ids=["warm", "one each", "pausing"])
def test_killed_after_every_single_effect(rooms: Path, workers: int, more: tuple[str, ...]) -> None:
    room = make_room(rooms, f"queue.workers={workers}", *more)
    lives = 1
    while not run_killed(room, lambda: 1):
        lives += 1
        assert lives < 400
    assert lives > 3 * TRIALS, "every trial alone needs an ask, an assignment and a tell"
    wait_for_workers(room)
    check_sweep(room, TRIALS)


@pytest.mark.parametrize("every", [*(pytest.param(n, marks=pytest.mark.deep) for n in (1, 3, 4)), 2])
@pytest.mark.parametrize("more", [(), PAUSING], ids=["", "pausing"])
def test_killed_at_every_durable_write(rooms: Path, every: int, more: tuple[str, ...]) -> None:
    """Also in the middle of an effect: right before or right after a file, a journal line, a started process."""
    room = make_room(rooms, *more)
    lives = 1

    def prepare() -> None:
        die_at_write(every if lives % 5 else every + 3)()  # a step further now and then, or `before` would never pass

    while not run_killed(room, prepare):
        lives += 1
        assert lives < 800
    wait_for_workers(room)
    check_sweep(room, TRIALS)


@pytest.mark.parametrize("pruner", [("pruner=none",), ("pruner=successive_halving",), PAUSING], ids=lambda p: p[0])
def test_a_sweep_on_one_worker_proposes_the_same_however_often_it_was_killed(
    rooms: Path, pruner: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("queue.workers=1", *pruner, "sampler.n_startup_trials=3")
    undisturbed = finish(rooms / "a", *overrides)
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms / "b"))
    room = make_room(rooms / "b", *overrides)
    while not run_killed(room, lambda: 2):
        pass
    wait_for_workers(room)
    assert [row[:3] for row in outline(room)] == [row[:3] for row in undisturbed]


def test_detach_and_resume_lose_nothing(rooms: Path) -> None:
    room = make_room(rooms)
    for _ in range(3):
        run_killed(room, lambda: 9)
        assert run_here(room, Mode.DETACH).how is Finished.DETACHED
    assert run_here(room).how is Finished.DONE
    wait_for_workers(room)
    check_sweep(room, TRIALS)


def stop_in_the_middle(room: Room, mode: Mode, how: Finished) -> None:
    """Kill a controller once it has assigned two trials, and end the sweep while both wait after a milestone."""
    (room.root / HOLD).touch()
    assert not run_killed(room, lambda: 5)
    assert run_here(room, mode).how is how
    (room.root / HOLD).unlink()


def test_stop_keeps_trials_open_and_resume_goes_on_with_their_numbers(rooms: Path) -> None:
    room = make_room(rooms)
    stop_in_the_middle(room, Mode.STOP, Finished.STOPPED)
    states = {row.state for row in open_reader(room).state().rows}
    assert "waiting" in states, "a trial was stopped, and goes on later"
    assert states <= {"waiting", "complete", "pruned"}
    assert run_here(room).how is Finished.DONE
    check_sweep(room, TRIALS)


def test_cancel_tells_everything(rooms: Path) -> None:
    room = make_room(rooms)
    stop_in_the_middle(room, Mode.CANCEL, Finished.CANCELLED)
    states = {row.state for row in open_reader(room).state().rows}
    assert "cancelled" in states, "a trial was running"
    assert states <= {"cancelled", "complete", "pruned"}
