"""What a sweep searches for: a metric, in which direction it is better, and how its values spread.

Invariants: frozen values. Everything that compares trials uses minimised values; everything that is stored or shown
uses the values as they were measured. They are turned here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainer.contract import Metric, Report


class Direction(StrEnum):
    """Which values of a metric are better, in Optuna's words."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class Spread(StrEnum):
    """Which values a metric can have; it decides on which scale a forecast compares them."""

    POSITIVE = "positive"  # above 0, compared by ratios: losses, seconds, sizes
    SHARE = "share"  # between 0 and 1: the mean of a score over rows
    REAL = "real"  # any number


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric with a direction.

    Args:
        name: of the metric in a report.
        rows: of a share, the rows over which it is a mean, so that its variance is known; 0: unknown.
        every, at: when it is measured, see `trainer.contract.Metric`.
    """

    name: str
    direction: Direction = Direction.MINIMIZE
    spread: Spread = Spread.POSITIVE
    rows: int = 0
    every: int = 1
    at: tuple[int, ...] = ()

    @property
    def maximised(self) -> bool:
        return self.direction is Direction.MAXIMIZE

    @property
    def verb(self) -> str:
        """What a sweep does with it, for texts: minimises or maximises."""
        return "maximises" if self.maximised else "minimises"

    def minimised(self, value: float) -> float:
        """The value, turned so that less is better. Turned twice, it is as it was."""
        return -value if self.maximised else value

    def due(self, milestone: int, final: bool) -> bool:
        """Whether the report at a milestone has it."""
        return Metric(self.name, "", every=self.every, at=self.at).due(milestone, final)

    def next_due(self, milestone: int) -> int:
        """The first milestone from this one on at which it is measured; this one if none is."""
        later = [at for at in sorted(self.at) if at >= milestone]
        if self.at:
            return later[0] if later else milestone
        return -(-milestone // self.every) * self.every

    def of(self, report: Report) -> float:
        """The minimised value in a report; NaN if the report lacks it."""
        return self.minimised(report.value(self.name))

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as a target, or better."""
        return self.minimised(value) <= self.minimised(target)
