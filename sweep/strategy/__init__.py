"""Search strategies that pause and promote, over the learning curves of a sweep.

Invariants: pure; the same curves give the same answer. Numbers are minimised. No Optuna, nothing is read or written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    """A trial's reports so far, ascending by milestone."""

    number: int
    params: Mapping[str, Any]
    reports: tuple[Report, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial that deserves the next free slot more than a new one does."""

    trial: int
    reason: str
    basis: Mapping[str, float]


class Strategy(Protocol):
    """Pauses, stops and promotes; `milestones` is the number of reports of a trial that runs to its end."""

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int) -> Verdict | None:
        """What its newest report means for a running trial; None: go on."""

    def promote(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """A paused trial that deserves the next free slot more than a new one; None: ask a new one."""

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

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int) -> Verdict | None:
        last = curves[number].reports[-1]
        if last.milestone not in self._rungs(milestones):
            return None
        value = self._value(last)
        rung = [self._at(curve, last.milestone) for curve in curves.values()]
        values = sorted(other for other in rung if not math.isnan(other))
        keep = max(1, len(values) // self.reduction_factor)
        if value <= values[keep - 1]:
            return None
        basis = {"value": value, "bar": values[keep - 1], "reached": float(len(values)), "kept": float(keep)}
        reason = f"{self.metric} {value:.4f} is not among the best {keep} of {len(values)} trials at milestone "
        return Verdict(last.milestone, value, f"{reason}{last.milestone}", Ruling.PAUSE, basis)

    def promote(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        for rung in reversed(self._rungs(milestones)):
            ranked = sorted((v, c.number) for c in curves.values() if not math.isnan(v := self._at(c, rung)))
            for value, number in ranked[: len(ranked) // self.reduction_factor]:
                curve = curves[number]
                if curve.standing is Standing.PAUSED and curve.reports[-1].milestone == rung:
                    basis = {"value": value, "rung": float(rung), "reached": float(len(ranked))}
                    reason = f"it is now among the best third of {len(ranked)} trials at milestone {rung}"
                    if self.reduction_factor != 3:
                        reason = reason.replace("third", f"1/{self.reduction_factor}")
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

    def _value(self, report: Report) -> float:
        value = getattr(report, self.metric)
        return math.inf if value is None or not math.isfinite(value) else float(value)

    def _at(self, curve: Curve, milestone: int) -> float:
        """The value at a milestone; NaN for a trial that has not reached it."""
        reports = curve.reports
        if len(reports) >= milestone and reports[milestone - 1].milestone == milestone:  # none is missing: no search
            return self._value(reports[milestone - 1])
        return next((self._value(r) for r in reports if r.milestone == milestone), math.nan)
