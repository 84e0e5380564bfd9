"""On which worker a trial is best trained, where workers differ in speed.

A sweep of many workers ends when the best trial does, and that takes as long as its worker needs. Slow workers may as
well train the first milestones of trials that are mostly given up, and fast ones those that promise most.

Invariants: pure. Where workers do not differ by more than what one worker's trials differ among themselves, all count
as equally fast, and no trial is moved.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sweep.search.strategy.encoding import Floats, axes_of, encode
from sweep.search.strategy.protocol import Curve, TrialStatus

TRIALS = 512  # the newest, by which workers are judged
# Of the trials that run, one in `SHARE` is a contender: worth the faster worker of one that has not reported more than
# `EARLY` times, where it would end sooner by `GAIN` of a whole trial. A pause and a new start cost seconds.
SHARE, EARLY, GAIN = 8, 2, 0.1


@dataclass(frozen=True)
class Places:
    """What is known of the workers when one of them is to be given a trial, or one of its trials is weighed.

    Args:
        pace: see `paces`; a worker that is not in it counts as an average one.
        contenders: trials that deserve the fastest workers, running or paused, those that promise most first.
        early: workers of trials that may well be given up soon.
    """

    pace: Mapping[str, float]
    contenders: tuple[int, ...] = ()
    early: tuple[str, ...] = ()

    def faster(self, worker: str, left: int, milestones: int) -> int:
        """On how many of the early workers a trial with so many milestones left would end noticeably sooner."""
        here = self._pace(worker)
        return sum(left * (1.0 / here - 1.0 / self._pace(one)) >= GAIN * milestones for one in self.early)

    def _pace(self, worker: str) -> float:
        return self.pace.get(worker, 1.0)


def places(
    curves: Mapping[int, Curve], pace: Mapping[str, float], ranked: Sequence[int], owed: Container[int]
) -> Places:
    """The places of a sweep.

    Args:
        ranked: trials that have reported and run or are paused, those that promise most first.
        owed: those of them that go on in any case.
    """
    running = {number for number, curve in curves.items() if curve.status is TrialStatus.RUNNING}
    contenders = tuple(ranked[: max(1, len(running) // SHARE)])
    early = [
        curves[number].worker
        for number in ranked
        if number in running and number not in contenders and number not in owed and _is_early(curves[number])
    ]
    return Places(pace, contenders, tuple(early))


def _is_early(curve: Curve) -> bool:
    return len(curve.reports) <= EARLY


def paces(curves: Iterable[Curve]) -> dict[str, float]:
    """How fast each worker is, 1 for the average one, by the tokens a second of the trials that reported there last;
    empty where none is known to be faster than another.

    The logarithm of a trial's tokens a second is taken for the sum of what its hyperparameters do (linear in their
    encoding, by ridge regression), what its worker does, and the rest; the worker's part is shrunk by what the rest
    would explain (the random-effects estimate of Searle, Casella and McCulloch, Variance Components, 1992, chapter 3).
    """
    there = [c for c in curves if c.worker and c.reports and 0.0 < c.reports[-1].tokens_per_second < math.inf]
    there = sorted(there, key=lambda curve: curve.number)[-TRIALS:]
    names = sorted({curve.worker for curve in there})
    if len(names) < 2:
        return {}
    of = np.searchsorted(names, [curve.worker for curve in there])
    y = np.log([curve.reports[-1].tokens_per_second for curve in there])
    params = [curve.params for curve in there]
    x = encode(axes_of(params), params)
    effect = np.zeros(len(names))
    for _ in range(3):  # the two parts in turn
        effect = _effects(y - _explained(x, y - effect[of]), of, len(names))
    return {name: math.exp(one) for name, one in zip(names, effect.tolist(), strict=True)} if effect.any() else {}


def _explained(x: Floats, y: Floats) -> Floats:
    """The part of y that is linear in x."""
    x, level = x - x.mean(axis=0), float(y.mean())
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (y - level))
    found: Floats = level + x @ weights
    return found


def _effects(rest: Floats, of: npt.NDArray[np.int64], workers: int) -> Floats:
    """Each worker's part of what is left, shrunk towards zero."""
    count = np.bincount(of, minlength=workers)
    mean = np.bincount(of, rest, minlength=workers) / count
    free = len(rest) - workers
    within = float(((rest - mean[of]) ** 2).sum()) / free if free else float(rest.var())
    between = max(0.0, float(mean.var(ddof=1)) - within * float((1.0 / count).mean()))
    if not between:
        return np.zeros(workers)
    found: Floats = (mean - mean.mean()) * between / (between + within / count)
    return found
