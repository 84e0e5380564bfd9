"""Controllers that are killed while a sweep evaluates its best adapters: each is judged once, none is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.controller.room_channel import RoomChannel
from sweep.evaluation.controller import CombinedController, EvaluationMode, EvaluationStudy, read_ending
from sweep.evaluation.jobs import evaluation_settings, evaluation_spec, evaluations_room
from sweep.model.identifiers import AttemptId
from sweep.model.states import Finished, Mode
from sweep.report.reader import open_reader, read_evaluation
from sweep.search.study import OptunaStudy
from sweep.wiring import session
from sweep.wiring.rooms import controller_lock, load_settings
from tests.helpers import kill_points
from tests.helpers.fakes import FastDispatcher
from tests.helpers.kill_points import Quiet, check_ledger, check_sweep, make_room, run_killed, wait_for_workers
from trainer.contract import TrialSpec, decode
from trainer.room import Room, hold

TRIALS = 5
WORDS = (
    f"search.trials={TRIALS}",
    "evaluate=heldout",
    "evaluate.dataset._component_=torchtune.datasets.alpaca_dataset",
)


def together(room: Room, listener: Quiet, mode: Mode = Mode.RUN) -> CombinedController:
    """As `session.with_evaluations`, with workers that need no torch."""
    settings = load_settings(room)
    main = alone(room, listener, mode)
    assert isinstance(main.ports.study, OptunaStudy)
    beside, inner = evaluations_room(room), evaluation_settings(settings)
    beside.root.mkdir(exist_ok=True)
    env = {"STEP_SECONDS": kill_points.STEP_SECONDS}
    dispatcher = FastDispatcher(beside, (), 1, settings.queue.trials_per_worker or 0, env=env)
    study = EvaluationStudy(beside, main.ports.study.winners)
    evaluation_mode = EvaluationMode(main.mode)
    judging = Controller(
        ports=Ports(study, RoomChannel(beside), dispatcher, session.BootClock()),
        limits=inner.limits(1),
        spec=lambda trial, attempt, worker: evaluation_spec(settings, room, AttemptId(trial, attempt, worker)),
        listener=listener,
        mode=evaluation_mode,
        created=session.created_at(settings),
        poll_seconds=0.005,
    )
    return CombinedController(main, judging, evaluation_mode, waits=False)


alone = kill_points.controller


@pytest.fixture(autouse=True)
def evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the harness runs and kills is both controllers."""
    monkeypatch.setattr(kill_points, "controller", together)


def run_here(room: Room, mode: Mode = Mode.RUN) -> Finished:
    with hold(controller_lock(room), "test") as mine:
        assert mine
        return together(room, Quiet(), mode).run().how


def winners(room: Room) -> list[int]:
    settings = load_settings(room)
    return session.open_study(room, settings).winners()


def check_evaluations(room: Room) -> None:
    beside = evaluations_room(room)
    judged = winners(room)
    assert judged
    assert beside.trials() == sorted(judged), "the adapters that were the best, and no other"
    best = open_reader(room).state().best
    assert best is not None
    assert best.number == judged[-1]
    for number in judged:
        assert read_evaluation(room, number).scores == {"loss": pytest.approx(rows(room)[number])}
        attempt = beside.attempts(number)[-1]
        spec = decode(TrialSpec, beside.attempt(number, attempt).spec.read_text())
        assert spec.evaluate is not None
        assert str(room.root / "trials" / f"{number:05d}") in spec.evaluate.adapter
    check_ledger(beside)


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
    assert run_here(room, mode) in (Finished.STOPPED, Finished.DETACHED, Finished.CANCELLED)
    assert run_here(room) is Finished.DONE
    wait_for_workers(room)
    wait_for_workers(evaluations_room(room))
    check_evaluations(room)


def test_an_evaluation_that_fails_is_tried_again_and_then_noted(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_EVALUATIONS", ",".join(map(str, range(TRIALS))))
    room = make_room(rooms, *WORDS, "search.max_attempts=2")
    assert run_here(room) is Finished.DONE, "the sweep is none the worse"
    check_sweep(room, TRIALS)
    for number in winners(room):
        found = read_evaluation(room, number)
        assert (found.state, found.scores) == ("failed", {})
        assert found.reason == "it failed 2 times, last by no luck (search.max_attempts=2)"
        assert evaluations_room(room).attempts(number) == [1, 2]
        assert read_ending(evaluations_room(room), number) is not None
    assert run_here(room) is Finished.DONE
    assert all(evaluations_room(room).attempts(number) == [1, 2] for number in winners(room)), "noted once and for all"
