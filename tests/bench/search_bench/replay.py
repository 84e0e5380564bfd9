"""A discrete-event replay of a table under a method that searches: workers, milestones, pauses and promotions.

Invariants: every method sees the same events for the same table, seed and workers; a milestone costs the same tokens
for every trial; a paused trial goes on from where it stood, at no cost; nothing here knows which method it drives.
A trial's curve is a fixed draw of (table seed, sweep seed, trial number).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from tests.bench.search_bench.tables import Table
from trainer.contract import Report

T = TypeVar("T")


class Decision(StrEnum):
    """What becomes of a trial after a report."""

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Job:
    """A trial to be trained up to and with milestone `until`, from where it stands."""

    trial: int
    params: Mapping[str, Any]
    until: int


class Method(Protocol):
    """What searches. `report` is called at every milestone; a job that reaches `until` ends as if paused there, one
    that reaches the table's last milestone is complete."""

    def next(self, worker: str) -> Job | None:
        """What a free worker trains; None: nothing before another trial has reported."""
        ...

    def report(self, trial: int, report: Report, worker: str) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers that train, each one trial at a time.

    Args:
        spread: of log(speed) between workers; packed slots advance together and have none.
        limit: full-trial equivalents after which a sweep counts as missed.
        max_seconds: of the method's own time, after which the sweep is cut and counts as missed: some samplers take
            longer with each trial, and a benchmark has an end.
    """

    count: int = 1
    spread: float = 0.0
    limit: float = 400.0
    max_seconds: float = math.inf


@dataclass
class Sweep:
    """What came of a sweep. Costs are full-trial equivalents, times are those of a full trial on a worker of speed 1.

    Args:
        trace: (cost, time, regret of the best complete trial), at each improvement; regret relative to the oracle.
        seconds: spent in the method itself; cut: they ran out.
    """

    cost: float = 0.0
    time: float = 0.0
    found: bool = False
    cut: bool = False
    trials: int = 0
    complete: int = 0
    seconds: float = 0.0
    trace: list[tuple[float, float, float]] = field(default_factory=list)

    def timed(self, call: Callable[[], T]) -> T:
        """The method's answer, with its time counted."""
        began = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - began
        return result


@dataclass
class _Trial:
    params: Mapping[str, Any]
    cell: tuple[int, int, int, int]
    at: int = 0


def report_of(table: Table, cell: tuple[int, int, int, int], milestone: int, lr: float, speed: float = 1.0) -> Report:
    """What a trial of this cell reports at a milestone (1-based) from a worker of this speed."""
    at = (*cell, milestone - 1)
    return Report(
        milestone=milestone,
        step=milestone,
        tokens=int(table.tokens[at]),
        epoch=0,
        loss=float(table.train_loss[at]),
        grad_norm=float(table.grad_norm[at]),
        lr=lr,
        tokens_per_second=speed,
        seconds=0.0,
        val_loss=float(table.val_loss[at]),
        final=milestone == table.milestones,
    )


def replay(table: Table, method: Method, workers: Workers, seed: int, within: float = 0.01) -> Sweep:
    """One sweep until a complete trial lies within `within` of the oracle, or the limit."""
    rng = np.random.default_rng([11, seed])
    speeds = np.exp(workers.spread * rng.standard_normal(workers.count))
    sweep, best, now, trained, order = Sweep(), np.inf, 0.0, 0, 0
    idle = list(range(workers.count))
    trials: dict[int, _Trial] = {}
    heap: list[tuple[float, int, int]] = []
    jobs: dict[int, Job] = {}
    milestones = table.milestones

    def draw(number: int) -> int:
        return int(np.random.default_rng([13, seed, number]).integers(table.seeds))

    while trained < workers.limit * milestones:
        if sweep.seconds > workers.max_seconds:
            sweep.cut = True
            break
        waiting: list[int] = []
        for worker in idle:
            job = sweep.timed(partial(method.next, str(worker)))
            if job is None:
                waiting.append(worker)
                continue
            if job.trial not in trials:
                sweep.trials += 1
                trials[job.trial] = _Trial(job.params, table.cell(job.params, draw(sweep.trials)))
            if not trials[job.trial].at < job.until <= milestones:
                raise ValueError(f"trial {job.trial} stands at {trials[job.trial].at} and is to reach {job.until}")
            jobs[worker] = job
            heapq.heappush(heap, (now + 1.0 / milestones / speeds[worker], order, worker))
            order += 1
        idle = waiting
        if not heap:
            raise RuntimeError("the method has nothing to train and nothing runs")
        now, _, worker = heapq.heappop(heap)
        job = jobs[worker]
        trial, trained = trials[job.trial], trained + 1
        trial.at += 1
        report = report_of(table, trial.cell, trial.at, float(trial.params["optimizer.lr"]), float(speeds[worker]))
        decision = sweep.timed(partial(method.report, job.trial, report, str(worker)))
        if report.final:
            sweep.complete += 1
            if report.val_loss is not None and report.val_loss < best:
                best = report.val_loss
                sweep.trace.append((trained / milestones, now, best / table.oracle - 1.0))
                if best <= table.oracle * (1.0 + within):
                    sweep.found = True
                    break
        if report.final or decision is not Decision.GO_ON or trial.at >= job.until:
            idle.append(worker)
        else:
            heapq.heappush(heap, (now + 1.0 / milestones / speeds[worker], order, worker))
            order += 1
    sweep.cost, sweep.time = trained / milestones, now
    return sweep
