"""The trials at each milestone, ranked by value.

Invariants: pure. A rung that was asked for once stays sorted as curves change, so that reading it costs no sorting.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweep.model.objectives import Objective
from sweep.search.strategy.protocol import Curve, CurveStatus
from trainer.contract import Report


@dataclass(slots=True)
class Rung:
    """The trials that have reported at one milestone. A value that is missing or not finite counts as infinite.

    Args:
        reached: minimised value and number of each of these trials, best first, ties by number.
        paused: those of them whose last report is at this milestone and that are paused.
    """

    objective: Objective
    milestone: int
    reached: list[tuple[float, int]] = field(default_factory=list)
    paused: list[tuple[float, int]] = field(default_factory=list)

    def change(self, old: Curve | None, new: Curve) -> None:
        """Replace the curve of a trial.

        Args:
            old: its curve so far; None: the trial is new.
        """
        before, after = self._rank(old), self._rank(new)
        if before != after:
            _exchange(self.reached, before, after)
        was_paused = before if old is not None and self._is_paused_here(old) else None
        is_paused = after if self._is_paused_here(new) else None
        if was_paused != is_paused:
            _exchange(self.paused, was_paused, is_paused)

    def _is_paused_here(self, curve: Curve) -> bool:
        return (
            curve.status is CurveStatus.PAUSED and bool(curve.reports) and curve.reports[-1].milestone == self.milestone
        )

    def _rank(self, curve: Curve | None) -> tuple[float, int] | None:
        """Value and number of a trial; None if it has not reported at this milestone."""
        at = self.milestone
        if curve is None or not curve.reports or curve.reports[-1].milestone < at:
            return None
        reports = curve.reports
        if len(reports) >= at and reports[at - 1].milestone == at:  # no report is missing: no search is needed
            return finite(reports[at - 1], self.objective), curve.number
        return next(((finite(r, self.objective), curve.number) for r in reports if r.milestone == at), None)


class RankedCurves(dict[int, Curve]):
    """Curves by trial number, with the rungs that were asked for.

    Invariant: curves are only ever set by `curves[number] = curve`, and never removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rungs: dict[tuple[Objective, int], Rung] = {}

    def __setitem__(self, number: int, curve: Curve) -> None:
        old = self.get(number)
        super().__setitem__(number, curve)
        for rung in self._rungs.values():
            rung.change(old, curve)

    def rung(self, objective: Objective, milestone: int) -> Rung:
        if (objective, milestone) not in self._rungs:
            self._rungs[objective, milestone] = rung_of(dict(self), objective, milestone)
        return self._rungs[objective, milestone]


def rung_of(curves: Mapping[int, Curve], objective: Objective, milestone: int) -> Rung:
    """The rung at a milestone, not to be changed. `RankedCurves` keep it; for any other mapping it is sorted now."""
    if isinstance(curves, RankedCurves):
        return curves.rung(objective, milestone)
    rung = Rung(objective, milestone)
    for curve in curves.values():
        rung.change(None, curve)
    return rung


def finite(report: Report, objective: Objective) -> float:
    """The minimised value of a report; infinity if it is missing or not finite."""
    value = objective.of(report)
    return float(value) if math.isfinite(value) else math.inf


def _exchange(ranks: list[tuple[float, int]], old: tuple[float, int] | None, new: tuple[float, int] | None) -> None:
    if old is not None:
        del ranks[bisect_left(ranks, old)]
    if new is not None:
        insort(ranks, new)
