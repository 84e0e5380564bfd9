"""How a strategy reads its objective: as losses above 0, of which less is better and only ratios count.

The model of a forecast compares logarithms of losses. A metric becomes such a loss by its link:

    spread      loss of a value v                                  its logarithm
    ----------  -------------------------------------------------  ---------------------------------------------
    positive    v, or 1/v where more is better                     log: the differences of losses as they are
    share       the odds against (for, where less is better) v,    logit, in units in which shares differ as much
                to the power of `SHARE_UNIT`                        as losses do
    real        e to the power of asinh(v), turned                 linear within about one of 0, by ratio beyond

A share that is a mean over n rows has the known variance p(1 - p)/n. Its logit has 1/(n p (1 - p)), with p drawn a
little towards a half, so that 0 and 1 have one too. The rows are the same for all trials, so that the difference of two
trials varies less than this; the variance is then on the safe side.

Invariants: pure. A loss stays as it is, to the last digit. Reports without the objective are no measurements; a due
measurement that is missing repeats the one before it, with a variance beyond all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sweep.model.objectives import Objective, Spread
from trainer.contract import Report

# The power of the odds: a quarter of a logit between two accuracies is as much as 2.5 % between two losses.
SHARE_UNIT = 0.1
# Rows by which a share of unknown rows is drawn towards a half.
UNKNOWN_ROWS = 4096
# The variance of a value that was not measured.
UNMEASURED = 1e4
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Measure:
    """The objective as a strategy reads it.

    Args:
        objective: what is searched for. Under the name `auto` it is the validation loss, and the training loss where
            there is none; under `val_loss` too.
    """

    objective: Objective

    @property
    def is_loss(self) -> bool:
        """Whether it is the training loss or the validation loss."""
        return self.objective.name in (AUTO, "loss", "val_loss")

    def value(self, report: Report) -> float:
        """The value in a report, as it was measured."""
        if not self.is_loss:
            return report.value(self.objective.name)
        return report.loss if self.objective.name == "loss" or report.val_loss is None else report.val_loss

    def loss(self, report: Report) -> float:
        """The loss that stands for a report; NaN if the report lacks the objective."""
        return self.loss_of(self.value(report))

    def loss_of(self, value: float) -> float:
        """The loss that stands for a value."""
        if self.is_loss or not math.isfinite(value):
            return value
        turned = self.objective.maximised
        match self.objective.spread:
            case Spread.POSITIVE:
                return value if not turned else 1.0 / value if value > 0 else math.inf
            case Spread.SHARE:
                share = self._drawn_in(value)
                return float(((1.0 - share) / share if turned else share / (1.0 - share)) ** SHARE_UNIT)
            case Spread.REAL:
                return math.exp(math.asinh(self.objective.minimised(value)))

    def value_of(self, loss: float) -> float:
        """The value that a loss stands for."""
        if self.is_loss or not 0 < loss < math.inf:
            return loss
        match self.objective.spread:
            case Spread.POSITIVE:
                return 1.0 / loss if self.objective.maximised else loss
            case Spread.SHARE:
                odds = loss ** (1.0 / SHARE_UNIT)
                against = odds / (1.0 + odds) if math.isfinite(odds) else 1.0
                return 1.0 - against if self.objective.maximised else against
            case Spread.REAL:
                return self.objective.minimised(math.sinh(math.log(loss)))

    def variance(self, value: float) -> float:
        """The known variance of the logarithm of a value's loss; 0 if nothing is known."""
        rows = self.objective.rows
        if self.is_loss or self.objective.spread is not Spread.SHARE or not rows or not math.isfinite(value):
            return 0.0
        share = self._drawn_in(value)
        return SHARE_UNIT**2 / (rows * share * (1.0 - share))

    def positions(self, milestones: int) -> int:
        """How many measurements a trial has that runs to its end, of so many milestones."""
        return len(schedule_of(self.objective, milestones)) or milestones

    def read(self, reports: Sequence[Report], milestones: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The losses of a trial's measurements, and the variances of their logarithms if any is known.

        Args:
            milestones: of a trial that runs to its end.
        """
        if self.is_loss:
            return tuple(self.loss(report) for report in reports), ()
        return self.read_values({report.milestone: self.value(report) for report in reports}, milestones)

    def read_values(self, values: dict[int, float], milestones: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As `read`, of the values by milestone."""
        schedule = schedule_of(self.objective, milestones)
        measured: dict[int, float] = {}
        for milestone, value in sorted(values.items()):
            if math.isfinite(value):
                at = next((k for k, due in enumerate(schedule) if due >= milestone), len(schedule) - 1)
                measured[at] = value
        losses, variances, last = [], [], next(iter(measured.values()), math.nan)
        for at in range(max(measured, default=-1) + 1):
            last = measured.get(at, last)
            losses.append(self.loss_of(last))
            variances.append(self.variance(last) if at in measured else UNMEASURED)
        return tuple(losses), tuple(variances) if any(variances) else ()

    def text(self, loss: float) -> str:
        """A loss as the value that it stands for."""
        return f"{self.value_of(loss):.4f}"

    def _drawn_in(self, share: float) -> float:
        """A share of k rows of n as (k + 1/2) of (n + 1)."""
        rows = self.objective.rows or UNKNOWN_ROWS
        return (min(max(share, 0.0), 1.0) * rows + 0.5) / (rows + 1.0)


@lru_cache(maxsize=64)
def schedule_of(objective: Objective, milestones: int) -> tuple[int, ...]:
    """The milestones at which an objective is measured, up to the end."""
    return tuple(at for at in range(1, milestones + 1) if objective.due(at, at == milestones))


def measure_of(metric: str, objective: Objective | None) -> Measure:
    """How a strategy reads a metric.

    Args:
        metric: its name, which a configuration of the strategy may have changed.
        objective: that of the sweep; None: there is none but the metric, which is minimised.
    """
    return Measure(objective if objective is not None and objective.name == metric else Objective(metric))
