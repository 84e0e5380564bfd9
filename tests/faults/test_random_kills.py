"""A few random schedules of kills, the same ones each time; `python -m tests.fuzz.kills` runs as many as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.cli import foreground
from sweep.queues.local import LocalBackend
from sweep.queues.slurm import SlurmBackend
from tests.fuzz.kill_schedules import QUEUES, draw
from tests.fuzz.kills import prepared, run, use_fast_workers

# The first seeds together have every pair of sampler and pruner, both storages, finals, evaluations and changes.
SIMULATED, LOCAL = range(1, 9), range(1, 5)


@pytest.fixture(autouse=True)
def fast_workers(monkeypatch: pytest.MonkeyPatch, rooms: Path) -> None:
    for backend in (LocalBackend, SlurmBackend):
        monkeypatch.setattr(backend, "_dispatcher", backend._dispatcher)
    monkeypatch.setattr(foreground, "SECOND_INTERRUPT_SECONDS", foreground.SECOND_INTERRUPT_SECONDS)
    monkeypatch.setenv("SWEEP_TESTS_FORK_SERVER", os.environ.get("SWEEP_TESTS_FORK_SERVER", ""))
    use_fast_workers()


@pytest.fixture(scope="module")
def table() -> Iterator[Path]:
    with prepared("simulated") as path:
        assert path is not None
        yield path


@pytest.mark.parametrize("seed", SIMULATED)
def test_simulated(seed: int, tmp_path: Path, table: Path) -> None:
    run(draw("simulated", seed), tmp_path, table)


@pytest.mark.parametrize("seed", LOCAL)
def test_local(seed: int, tmp_path: Path) -> None:
    with prepared("local"):
        run(draw("local", seed), tmp_path)


@pytest.mark.parametrize("queue", QUEUES)
def test_a_schedule_is_drawn_from_its_seed_alone_and_says_how_to_repeat_it(queue: str) -> None:
    assert draw(queue, 7) == draw(queue, 7)
    assert len({repr(draw(queue, seed)) for seed in range(50)}) == 50
    assert draw(queue, 7).command == f"python -m tests.fuzz.kills --queue {queue} --schedules 1 --seed 7"


def test_schedules_reach_what_a_sweep_can_have() -> None:
    drawn = [draw("local", seed) for seed in range(400)]
    words = {word for schedule in drawn for word in schedule.words}
    assert {"sampler=forecast", "pruner=freeze_thaw", "pruner=asha", "queue.slots=4", "evaluate=heldout"} <= words
    assert {(schedule.sqlite, schedule.evaluated) for schedule in drawn} == {(a, b) for a in (0, 1) for b in (0, 1)}
    assert {schedule.finals for schedule in drawn} == {0, 2}
    assert {life.how for schedule in drawn for life in schedule.lives} == set(type(drawn[0].lives[0].how))
    assert any(schedule.change and schedule.change.killed for schedule in drawn)
    assert any(schedule.creation for schedule in drawn)
    assert {how for schedule in drawn for how, _ in schedule.signals.values()} == {"SIGKILL", "SIGTERM", "SIGSTOP"}
