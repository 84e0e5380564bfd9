"""Which workers a trial is best trained on, if workers differ in speed.

A sweep of many workers ends when its best trial does, which takes as long as that trial's worker needs. Slow workers
may as well train the first milestones of trials that will mostly be given up, and fast workers the best trials.

Invariants: pure. If workers differ by no more than the trials of one worker do among themselves, all count as equally
fast, and no trial is moved.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sweep.search.strategy.encoding import Floats, axes_of, encode
from sweep.search.strategy.protocol import Curve, CurveStatus

# The speed of workers is estimated from this many trials, the newest.
TRIALS = 512
# Of the running trials, one in this many is a contender: it should be on a fast worker.
TRIALS_PER_CONTENDER = 8
# A contender may take the worker of a trial that has not reported more often than this.
EARLY_REPORTS = 2
# It does so only if it then ends sooner by this share of a whole trial: a pause and a start cost seconds.
MIN_GAIN = 0.1


@dataclass(frozen=True)
class WorkerSpeeds:
    """The speeds of the workers, when a trial is to be chosen for a worker or a trial of a worker is judged.

    Args:
        speeds: by worker, see `relative_speeds`; a worker that is missing counts as average.
        contenders: trials that should be on the fastest workers, running or paused, the best first.
        early: workers of trials that are likely to be given up soon.
    """

    speeds: Mapping[str, float]
    contenders: tuple[int, ...] = ()
    early: tuple[str, ...] = ()

    def faster(self, worker: str, remaining: int, milestones: int) -> int:
        """On how many of the early workers a trial with so many remaining milestones would end noticeably sooner."""
        here = self._speed(worker)
        return sum(remaining * (1.0 / here - 1.0 / self._speed(other)) >= MIN_GAIN * milestones for other in self.early)

    def _speed(self, worker: str) -> float:
        return self.speeds.get(worker, 1.0)


def worker_speeds(
    curves: Mapping[int, Curve], speeds: Mapping[str, float], ranked: Sequence[int], guaranteed: Container[int]
) -> WorkerSpeeds:
    """The worker speeds of a sweep.

    Args:
        speeds: see `relative_speeds`.
        ranked: trials that have reported and are running or paused, the best first.
        guaranteed: those of them that continue in any case.
    """
    running = {number for number, curve in curves.items() if curve.status is CurveStatus.RUNNING}
    contenders = tuple(ranked[: max(1, len(running) // TRIALS_PER_CONTENDER)])
    early = [
        curves[number].worker
        for number in ranked
        if number in running and number not in contenders and number not in guaranteed and _is_early(curves[number])
    ]
    return WorkerSpeeds(speeds, contenders, tuple(early))


def _is_early(curve: Curve) -> bool:
    return len(curve.reports) <= EARLY_REPORTS


def relative_speeds(curves: Iterable[Curve]) -> dict[str, float]:
    """The speed of each worker, 1 for the average one; empty if no worker is known to be faster than another.

    The logarithm of a trial's last tokens per second is modelled as the sum of the effect of its hyperparameters
    (linear in their encoding, by ridge regression), the effect of its worker, and a residual. The effect of a worker is
    shrunk by what the residual would explain (the random-effects estimate of Searle, Casella and McCulloch, Variance
    Components, 1992, chapter 3).
    """
    timed = [c for c in curves if c.worker and c.reports and 0.0 < c.reports[-1].tokens_per_second < math.inf]
    timed = sorted(timed, key=lambda curve: curve.number)[-TRIALS:]
    names = sorted({curve.worker for curve in timed})
    if len(names) < 2:
        return {}
    worker = np.searchsorted(names, [curve.worker for curve in timed])
    y = np.log([curve.reports[-1].tokens_per_second for curve in timed])
    params = [curve.params for curve in timed]
    x = encode(axes_of(params), params)
    effect = np.zeros(len(names))
    for _ in range(3):  # both effects are estimated in turn
        effect = _worker_effects(y - _hyperparameter_effect(x, y - effect[worker]), worker, len(names))
    if not effect.any():
        return {}
    return {name: math.exp(value) for name, value in zip(names, effect.tolist(), strict=True)}


def _hyperparameter_effect(x: Floats, y: Floats) -> Floats:
    """The part of y that is linear in x, shape (n,)."""
    x, level = x - x.mean(axis=0), float(y.mean())
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (y - level))
    effect: Floats = level + x @ weights
    return effect


def _worker_effects(rest: Floats, worker: npt.NDArray[np.int64], workers: int) -> Floats:
    """The effect of each worker on what is left, shrunk towards zero, shape (workers,)."""
    count = np.bincount(worker, minlength=workers)
    mean = np.bincount(worker, rest, minlength=workers) / count
    free = len(rest) - workers
    within = float(((rest - mean[worker]) ** 2).sum()) / free if free else float(rest.var())
    between = max(0.0, float(mean.var(ddof=1)) - within * float((1.0 / count).mean()))
    if not between:
        return np.zeros(workers)
    effect: Floats = (mean - mean.mean()) * between / (between + within / count)
    return effect
