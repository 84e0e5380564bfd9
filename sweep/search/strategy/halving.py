"""Search strategies that pause and promote, over the learning curves of a sweep.

Invariants: pure; the same curves give the same answer. Numbers are minimised. No Optuna, nothing is read or written.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sweep.model import Ruling, Verdict
from trainer.contract import Report


class Standing(StrEnum):
    """Where a trial stands in the eyes of a strategy."""

    RUNNING = "running"
    PAUSED = "paused"
    PRUNED = "pruned"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial's reports so far, ascending by milestone.

    Args:
        worker: where the last of them was made; empty where that is not known, or does not matter.
    """

    number: int
    params: Mapping[str, Any]
    reports: tuple[Report, ...]
    standing: Standing
    worker: str = ""


@dataclass(slots=True)
class Rung:
    """Who stands where at one milestone; a value that is missing or not finite counts as infinite.

    Args:
        reached: value and number of each trial that has reported there, best first, ties by number.
        paused: those of them that are paused there.
    """

    metric: str
    milestone: int
    reached: list[tuple[float, int]] = field(default_factory=list)
    paused: list[tuple[float, int]] = field(default_factory=list)

    def change(self, old: Curve | None, new: Curve) -> None:
        """A trial's curve has changed; None: it was not there."""
        before, after = self._rank(old), self._rank(new)
        if before != after:
            _exchange(self.reached, before, after)
        rested = before if old is not None and self._rests(old) else None
        rests = after if self._rests(new) else None
        if rested != rests:
            _exchange(self.paused, rested, rests)

    def _rests(self, curve: Curve) -> bool:
        return (
            curve.standing is Standing.PAUSED and bool(curve.reports) and curve.reports[-1].milestone == self.milestone
        )

    def _rank(self, curve: Curve | None) -> tuple[float, int] | None:
        """None for a trial that has not reported there."""
        at = self.milestone
        if curve is None or not curve.reports or curve.reports[-1].milestone < at:
            return None
        reports = curve.reports
        if len(reports) >= at and reports[at - 1].milestone == at:  # none is missing: no search
            return finite(reports[at - 1], self.metric), curve.number
        return next(((finite(r, self.metric), curve.number) for r in reports if r.milestone == at), None)


class Ranked(dict[int, Curve]):
    """Curves by number, which keeps those rungs sorted that were asked for.

    Invariant: curves come in by `ranked[number] = curve` alone, and none is ever taken out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rungs: dict[tuple[str, int], Rung] = {}

    def __setitem__(self, number: int, curve: Curve) -> None:
        old = self.get(number)
        super().__setitem__(number, curve)
        for rung in self._rungs.values():
            rung.change(old, curve)

    def rung(self, metric: str, milestone: int) -> Rung:
        if (metric, milestone) not in self._rungs:
            self._rungs[metric, milestone] = rung_of(dict(self), metric, milestone)
        return self._rungs[metric, milestone]


def rung_of(curves: Mapping[int, Curve], metric: str, milestone: int) -> Rung:
    """The rung at a milestone: kept where the curves keep it, else sorted now; not to be changed by who asks."""
    if isinstance(curves, Ranked):
        return curves.rung(metric, milestone)
    found = Rung(metric, milestone)
    for curve in curves.values():
        found.change(None, curve)
    return found


def finite(report: Report, metric: str) -> float:
    """A report's value; infinity where it is missing or not finite."""
    value = getattr(report, metric)
    return math.inf if value is None or not math.isfinite(value) else float(value)


def _exchange(ranks: list[tuple[float, int]], old: tuple[float, int] | None, new: tuple[float, int] | None) -> None:
    if old is not None:
        del ranks[bisect_left(ranks, old)]
    if new is not None:
        insort(ranks, new)


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial that deserves the next free slot more than a new one does."""

    trial: int
    reason: str
    basis: Mapping[str, float]


class Strategy(Protocol):
    """Pauses, stops and promotes; `milestones` is the number of reports of a trial that runs to its end."""

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int, new: bool = True) -> Verdict | None:
        """What its newest report means for a running trial; None: go on.

        Args:
            new: a new trial may be asked for in its place.
        """

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        """A paused trial that deserves a free slot of this worker more than a new one; None: ask a new one."""

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """A paused trial that is worth going on with where no new one may be asked for; None: none is."""


@dataclass(frozen=True, slots=True)
class AsynchronousHalving:
    """Asynchronous successive halving with promotion (Li et al., 2020, arXiv:1810.05934) over milestones.

    A trial pauses at each rung unless it is among the best 1/`reduction_factor` of those that have reached it;
    it is promoted when it comes to be among them.

    Args:
        metric: the report's field that is minimised.
        min_resource: the milestone of the first rung.
    """

    metric: str = "loss"
    min_resource: int = 2
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        if self.min_resource < 1 or self.reduction_factor < 2:
            raise ValueError("min_resource must be at least 1, and reduction_factor at least 2")

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int, new: bool = True) -> Verdict | None:
        last = curves[number].reports[-1]
        if last.milestone not in self._rungs(milestones):
            return None
        value, reached = finite(last, self.metric), rung_of(curves, self.metric, last.milestone).reached
        keep = max(1, len(reached) // self.reduction_factor)
        bar = reached[keep - 1][0]
        if value <= bar:
            return None
        basis = {"value": value, "bar": bar, "reached": float(len(reached)), "kept": float(keep)}
        reason = f"{self.metric} {value:.4f} is not among the best {keep} of {len(reached)} trials at milestone "
        return Verdict(last.milestone, value, f"{reason}{last.milestone}", Ruling.PAUSE, basis)

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        for milestone in reversed(self._rungs(milestones)):
            rung = rung_of(curves, self.metric, milestone)
            kept = len(rung.reached) // self.reduction_factor
            if kept and rung.paused and rung.paused[0] <= rung.reached[kept - 1]:
                value, number = rung.paused[0]
                basis = {"value": value, "rung": float(milestone), "reached": float(len(rung.reached))}
                share = "third" if self.reduction_factor == 3 else f"1/{self.reduction_factor}"
                reason = f"it is now among the best {share} of {len(rung.reached)} trials at milestone {milestone}"
                return Promotion(number, reason, basis)
        return None

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        return self.promote(curves, milestones)  # whether a new one may be asked for does not matter to it

    def _rungs(self, milestones: int) -> list[int]:
        rungs, at = [], self.min_resource
        while at < milestones:
            rungs.append(at)
            at *= self.reduction_factor
        return rungs
