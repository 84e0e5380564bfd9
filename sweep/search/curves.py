"""The learning curves of a sweep, and the strategy that judges them.

Invariants: independent of Optuna; does no input or output. A verdict stands: reports after a stop are not added, and
reports after a pause are added only when the trial is promoted. So the curves do not depend on how fast a stop was. The
reports of ended trials are kept packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweep.model.facts import Verdict
from sweep.model.states import Ruling
from sweep.search.strategy.packed_reports import PackedReports
from sweep.search.strategy.protocol import Curve, CurveStatus, Promotion, Strategy
from sweep.search.strategy.rungs import RankedCurves
from trainer.contract import Report


@dataclass(slots=True)
class Curves:
    """The curves of one sweep with its strategy.

    Args:
        milestones: the number of reports of a trial that runs to its end.
    """

    strategy: Strategy
    milestones: int
    _curves: RankedCurves = field(default_factory=RankedCurves)

    def begin(self, number: int, params: Mapping[str, Any], status: CurveStatus = CurveStatus.RUNNING) -> None:
        """Add a trial without reports."""
        self._curves[number] = Curve(number, params, (), status)

    def add(self, number: int, report: Report, worker: str = "") -> None:
        """Add a report of a trial from a worker. Does nothing unless it is newer than the last one."""
        curve = self._curves[number]
        if not curve.reports or report.milestone > curve.reports[-1].milestone:
            self._set(replace(curve, reports=(*curve.reports, report), worker=worker))

    def set_status(self, number: int, status: CurveStatus) -> None:
        """Change the status of a trial."""
        if self._curves[number].status is not status:
            self._set(replace(self._curves[number], status=status))

    def _set(self, curve: Curve) -> None:
        ended = curve.status not in (CurveStatus.RUNNING, CurveStatus.PAUSED)
        if ended and not isinstance(curve.reports, PackedReports):
            curve = replace(curve, reports=PackedReports(curve.reports))
        self._curves[curve.number] = curve

    def verdict(self, number: int, new_allowed: bool = True) -> Verdict | None:
        """The strategy's verdict on the newest report of a trial, whose status changes accordingly.

        Args:
            new_allowed: the budget allows a new trial in place of this one.
        """
        verdict = self.strategy.verdict(number, self._curves, self.milestones, new_allowed)
        if verdict is not None:
            self.set_status(number, CurveStatus.PAUSED if verdict.ruling is Ruling.PAUSE else CurveStatus.PRUNED)
        return verdict

    def promote(self, new_allowed: bool, worker: str = "") -> Promotion | None:
        """The strategy's choice among the paused trials, which is running from then on; None: none of them.

        Args:
            new_allowed: the budget allows a new trial in the free slot.
            worker: the worker with the free slot.
        """
        if new_allowed:
            promotion = self.strategy.promote(self._curves, self.milestones, worker)
        else:
            promotion = self.strategy.finish(self._curves, self.milestones)
        if promotion is not None:
            self.set_status(promotion.trial, CurveStatus.RUNNING)
        return promotion

    def without_reports(self) -> list[int]:
        """Ended trials whose reports were never added, or that never reported."""
        return [
            number
            for number, curve in self._curves.items()
            if curve.status not in (CurveStatus.RUNNING, CurveStatus.PAUSED) and not curve.reports
        ]
