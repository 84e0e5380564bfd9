"""Workers of different speeds: how they are told apart, and which trials go on on the faster ones."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.protocol import Curve, CurveStatus
from sweep.search.strategy.worker_speed import MIN_GAIN, WorkerSpeeds, relative_speeds, worker_speeds
from tests.bench.search_bench.ours import OurMethod, our_arms
from tests.bench.search_bench.replay import Decision, Job, Workers, replay
from tests.bench.search_bench.tables import MILESTONES, synthetic
from tests.helpers.curves import RANK, curve, sweeps
from trainer.contract import Report

BATCH = "batch_size"
SPEEDS = {f"w{n:04d}": speed for n, speed in enumerate((0.5, 0.8, 1.0, 1.25, 2.0), start=1)}


def trained(number: int, worker: str, rate: float, batch: int, reports: int = 3) -> Curve:
    """A trial that runs, and has just reported so many tokens a second."""
    made = curve(number, (number % 6, number % 12, 0), reports, CurveStatus.RUNNING)
    last = replace(made.reports[-1], tokens_per_second=rate)
    params = {**made.params, BATCH: batch}
    return replace(made, params=params, reports=(*made.reports[:-1], last), worker=worker)


def rate_of(batch: int, rank: object) -> float:
    """Tokens a second of a trial on an average worker, as hyperparameters make it."""
    return 9000.0 * math.pow(batch, 0.7) * (1.0 - 0.001 * float(str(rank)))


@pytest.mark.parametrize("each", [4, 12])
def test_a_worker_s_speed_is_told_apart_from_what_its_trials_batches_do(each: int) -> None:
    rng = np.random.default_rng(3)
    curves = []
    for number in range(each * len(SPEEDS)):
        worker, batch = list(SPEEDS)[number % len(SPEEDS)], int(2 ** rng.integers(0, 5))
        rank = curve(number, (number % 6, 0, 0), 1, CurveStatus.RUNNING).params[RANK]
        noise = math.exp(0.03 * rng.standard_normal())
        curves.append(trained(number, worker, rate_of(batch, rank) * SPEEDS[worker] * noise, batch))
    found = relative_speeds(curves)
    assert found == pytest.approx(SPEEDS, rel=0.12)


def test_equal_workers_count_as_equal_whatever_they_train() -> None:
    curves = {n: trained(n, f"w{n % 5:04d}", rate_of(2 ** (n % 5), 8), 2 ** (n % 5)) for n in range(20)}
    found = worker_speeds(curves, relative_speeds(curves.values()), list(curves), ())
    assert not any(found.faster(one.worker, MILESTONES, MILESTONES) for one in curves.values())


def test_rates_that_say_nothing_are_left_out() -> None:
    curves = [trained(n, f"w{n}", rate, 1) for n, rate in enumerate((math.nan, 0.0, math.inf))]
    assert relative_speeds(curves) == {}
    assert relative_speeds([trained(0, "w0001", 5.0, 1)]) == {}
    assert relative_speeds([replace(trained(n, "", 5.0 + n, 1), worker="") for n in range(4)]) == {}


def test_what_is_saved_decides() -> None:
    found = WorkerSpeeds({"slow": 0.8, "fast": 1.6}, early=("fast", "unknown"))
    assert found.faster("slow", MILESTONES, MILESTONES) == 2  # one that is not known counts as an average one
    assert found.faster("unknown", MILESTONES, MILESTONES) == 1
    assert found.faster("fast", MILESTONES, MILESTONES) == 0
    least = math.ceil(MIN_GAIN * MILESTONES / (1 / 0.8 - 1 / 1.6))
    assert [found.faster("slow", left, MILESTONES) for left in (least - 1, least)] == [0, 1]


def test_contenders_are_few_and_no_early_trial_is_one() -> None:
    curves = {n: trained(n, f"w{n % 16:04d}", 1000.0 * (1 + n % 16), 1, 1 if n < 16 else 6) for n in range(32)}
    found = worker_speeds(curves, relative_speeds(curves.values()), list(curves), {5})
    assert found.contenders == (0, 1, 2, 3)
    assert set(found.early) == {f"w{n:04d}" for n in range(4, 16)} - {"w0005"}


@settings(max_examples=15, deadline=None)
@given(sweeps())
def test_on_equal_workers_no_trial_is_moved(curves: dict[int, Curve]) -> None:
    """Whatever the strategy says of trials whose workers are not known, it says of those of equal ones."""
    named = {n: replace(one, worker=f"w{n % 4:04d}") for n, one in curves.items()}
    last = max(curves)
    assert FreezeThaw("val_loss").verdict(last, named, MILESTONES) == FreezeThaw("val_loss").verdict(
        last, curves, MILESTONES
    )
    assert FreezeThaw("val_loss").promote(named, MILESTONES, "w0001") == FreezeThaw("val_loss").promote(
        curves, MILESTONES
    )


class Watched:
    """A method whose moves are recorded: the worker that a trial left for a faster one, and the one that resumed it."""

    def __init__(self, method: OurMethod) -> None:
        self.method, self.left, self.moves = method, dict[int, str](), list[tuple[str, str]]()

    def next(self, worker: str) -> Job | None:
        job = self.method.next(worker)
        if job is not None and job.trial in self.left:
            self.moves.append((self.left.pop(job.trial), worker))
        return job

    def report(self, trial: int, report: Report, worker: str) -> Decision:
        decision = self.method.report(trial, report, worker)
        said = self.method.last
        if decision is Decision.PAUSE and said is not None and "a faster worker" in said.reason:
            self.left[trial] = worker
        return decision


@pytest.mark.slow
def test_contenders_move_to_faster_workers() -> None:
    table, workers = synthetic(3), Workers(24, 0.4, limit=12.0)
    watched = Watched(our_arms()["ours"](table, 1))
    replay(table, watched, workers, 1)
    speeds = np.exp(workers.spread * np.random.default_rng([11, 1]).standard_normal(workers.count))
    went = Counter(bool(speeds[int(there)] > speeds[int(here)]) for here, there in watched.moves)
    assert went[True] >= 3
    assert went[True] > 2 * went[False]
