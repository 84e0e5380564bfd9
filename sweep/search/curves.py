"""What a search strategy sees of a sweep: every trial's reports and where it stands.

Invariants: no Optuna; nothing is read or written. A verdict stands: reports after a stop are not known, those after
a pause are held back until the trial is promoted, so that what is known does not depend on how quick a stop was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweep.model import Ruling, Verdict
from sweep.search.strategy.halving import Curve, Promotion, Ranked, Standing, Strategy
from trainer.contract import Report


@dataclass(slots=True)
class Curves:
    """The curves of one sweep in the hands of its strategy.

    Args:
        milestones: reports of a trial that runs to its end.
    """

    strategy: Strategy
    milestones: int
    _curves: Ranked = field(default_factory=Ranked)

    def begin(self, number: int, params: Mapping[str, Any], standing: Standing = Standing.RUNNING) -> None:
        """A trial is there, without reports."""
        self._curves[number] = Curve(number, params, (), standing)

    def add(self, number: int, report: Report, worker: str = "") -> None:
        """A trial has reported from a worker; nothing where that is known."""
        curve = self._curves[number]
        if not curve.reports or report.milestone > curve.reports[-1].milestone:
            self._curves[number] = replace(curve, reports=(*curve.reports, report), worker=worker)

    def stand(self, number: int, standing: Standing) -> None:
        if self._curves[number].standing is not standing:
            self._curves[number] = replace(self._curves[number], standing=standing)

    def verdict(self, number: int, new: bool = True) -> Verdict | None:
        """The strategy's verdict on a trial's newest report; the trial then stands as it says.

        Args:
            new: a new trial may be asked for in its place.
        """
        found = self.strategy.verdict(number, self._curves, self.milestones, new)
        if found is not None:
            self.stand(number, Standing.PAUSED if found.ruling is Ruling.PAUSE else Standing.PRUNED)
        return found

    def promote(self, new: bool, worker: str = "") -> Promotion | None:
        """The strategy's choice among the paused trials; it then stands as running.

        Args:
            new: a new trial may be asked for in its place.
            worker: whose slot is free.
        """
        if new:
            found = self.strategy.promote(self._curves, self.milestones, worker)
        else:
            found = self.strategy.finish(self._curves, self.milestones)
        if found is not None:
            self.stand(found.trial, Standing.RUNNING)
        return found

    def without_reports(self) -> list[int]:
        """Ended trials whose reports were never taken in, or who never reported."""
        return [
            number
            for number, curve in self._curves.items()
            if curve.standing not in (Standing.RUNNING, Standing.PAUSED) and not curve.reports
        ]
