"""Controllers that are killed while a sweep evaluates its best adapters: each is judged once, none is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.evaluation.controller import read_ending
from sweep.evaluation.jobs import evaluations_room
from sweep.model.states import Finished, Mode
from sweep.report.reader import open_reader, read_evaluation
from sweep.wiring import session
from sweep.wiring.rooms import load_settings
from tests.helpers import kill_points
from tests.helpers.executions import check_executions, executions_dir
from tests.helpers.kill_points import make_room, run_here, run_killed
from tests.helpers.sweep_checks import check_sweep, wait_for_workers
from trainer.contract import TrialSpec, decode
from trainer.room import Room

TRIALS = 5
WORDS = (
    f"search.trials={TRIALS}",
    "evaluate=heldout",
    "evaluate.dataset._component_=torchtune.datasets.alpaca_dataset",
)


ENDS = {Mode.STOP: Finished.STOPPED, Mode.DETACH: Finished.DETACHED, Mode.CANCEL: Finished.CANCELLED}


def winners(room: Room) -> list[int]:
    settings = load_settings(room)
    return session.open_study(room, settings).winners()


def check_evaluations(room: Room) -> None:
    inner_room = evaluations_room(room)
    judged = winners(room)
    assert judged
    assert inner_room.trials() == sorted(judged), "the adapters that were the best, and no other"
    best = open_reader(room).state().best
    assert best is not None
    assert best.number == judged[-1]
    for number in judged:
        assert read_evaluation(room, number).scores == {"loss": pytest.approx(rows(room)[number])}
        attempt = inner_room.attempts(number)[-1]
        spec = decode(TrialSpec, inner_room.attempt(number, attempt).spec.read_text())
        assert spec.evaluate is not None
        assert str(room.root / "trials" / f"{number:05d}") in spec.evaluate.adapter
    check_executions(executions_dir(inner_room.root))


def rows(room: Room) -> dict[int, float]:
    return {row.number: row.value for row in open_reader(room).state().rows if row.value is not None}


@pytest.mark.parametrize("trials_per_worker", ["null", "1"])
def test_killed_after_every_few_effects(rooms: Path, trials_per_worker: str) -> None:
    room = make_room(rooms, *WORDS, f"queue.trials_per_worker={trials_per_worker}")
    lives = 1
    while not run_killed(room, [lambda: 1, lambda: 2, lambda: 3][lives % 3]):
        lives += 1
        assert lives < 400
    assert lives > 8, "it was killed again and again"
    wait_for_workers(room)
    wait_for_workers(evaluations_room(room))
    check_sweep(room, TRIALS)
    check_evaluations(room)


@pytest.mark.deep
@pytest.mark.parametrize("every", [3])
def test_killed_at_every_durable_write(rooms: Path, every: int) -> None:
    room = make_room(rooms, *WORDS)
    lives = 1

    def prepare() -> None:
        kill_points.die_at_write(every if lives % 5 else every + 3)()

    while not run_killed(room, prepare):
        lives += 1
        assert lives < 800
    wait_for_workers(room)
    wait_for_workers(evaluations_room(room))
    check_sweep(room, TRIALS)
    check_evaluations(room)


@pytest.mark.parametrize("mode", [Mode.STOP, Mode.DETACH, Mode.CANCEL])
def test_a_sweep_that_was_ended_from_outside_goes_on_with_its_evaluations(
    rooms: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_points, "STEP_SECONDS", "0.2")
    room = make_room(rooms, *WORDS)
    killed = 0
    while not evaluations_room(room).trials() and killed < 60:
        run_killed(room, lambda: 4)
        killed += 1
    assert evaluations_room(room).trials()
    assert run_here(room, mode).how is ENDS[mode]
    assert run_here(room).how is Finished.DONE
    wait_for_workers(room)
    wait_for_workers(evaluations_room(room))
    check_evaluations(room)


def test_an_evaluation_that_fails_is_tried_again_and_then_noted(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_EVALUATIONS", ",".join(map(str, range(TRIALS))))
    room = make_room(rooms, *WORDS, "search.max_attempts=2")
    assert run_here(room).how is Finished.DONE, "the sweep is none the worse"
    check_sweep(room, TRIALS)
    assert winners(room)
    for number in winners(room):
        found = read_evaluation(room, number)
        assert (found.state, found.scores) == ("failed", {})
        assert found.reason == "it failed 2 times, last by no luck (search.max_attempts=2)"
        assert evaluations_room(room).attempts(number) == [1, 2]
        assert read_ending(evaluations_room(room), number) is not None
    assert run_here(room).how is Finished.DONE
    assert all(evaluations_room(room).attempts(number) == [1, 2] for number in winners(room)), "noted once and for all"
