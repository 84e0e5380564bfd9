"""Asynchronous successive halving with pauses and promotions.

Invariants: those of every strategy (see `protocol`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweep.model.facts import Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ruling
from sweep.search.strategy.measure import measure_of
from sweep.search.strategy.protocol import Curve, Promotion
from sweep.search.strategy.rungs import finite, rung_of


@dataclass(frozen=True, slots=True)
class AsynchronousHalving:
    """Asynchronous successive halving with promotion (Li et al., 2020, arXiv:1810.05934) over milestones.

    A trial pauses at each rung unless it is among the best 1/`reduction_factor` of the trials that have reached the
    rung. It is promoted once it is among them.

    Args:
        metric: the name of what is compared.
        min_resource: the milestone of the first rung.
        reduction_factor: the ratio of the milestones of successive rungs, and of the trials that reach them.
        objective: the metric with its direction, and when it is measured: a rung is at the next milestone that has it.
            None: `metric` is minimised.

    Raises:
        ValueError: `min_resource` is below 1, or `reduction_factor` below 2.
    """

    metric: str = "loss"
    min_resource: int = 2
    reduction_factor: int = 3
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.min_resource < 1 or self.reduction_factor < 2:
            raise ValueError("min_resource must be at least 1, and reduction_factor at least 2")

    def verdict(
        self, number: int, curves: Mapping[int, Curve], milestones: int, new_allowed: bool = True
    ) -> Verdict | None:
        last = curves[number].reports[-1]
        if last.milestone not in self._rungs(milestones):
            return None
        objective = self._objective
        value, reached = finite(last, objective), rung_of(curves, objective, last.milestone).reached
        keep = max(1, len(reached) // self.reduction_factor)
        bar = reached[keep - 1][0]
        if value <= bar:
            return None
        value = objective.minimised(value)
        basis = {
            "value": value,
            "bar": objective.minimised(bar),
            "reached": float(len(reached)),
            "kept": float(keep),
        }
        reason = f"{self.metric} {value:.4f} is not among the best {keep} of {len(reached)} trials at milestone "
        return Verdict(last.milestone, value, f"{reason}{last.milestone}", Ruling.PAUSE, basis)

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        for milestone in reversed(self._rungs(milestones)):
            rung = rung_of(curves, self._objective, milestone)
            kept = len(rung.reached) // self.reduction_factor
            if kept and rung.paused and rung.paused[0] <= rung.reached[kept - 1]:
                value, number = rung.paused[0]
                shown, reached = self._objective.minimised(value), float(len(rung.reached))
                basis = {"value": shown, "rung": float(milestone), "reached": reached}
                share = "third" if self.reduction_factor == 3 else f"1/{self.reduction_factor}"
                reason = f"it is now among the best {share} of {len(rung.reached)} trials at milestone {milestone}"
                return Promotion(number, reason, basis)
        return None

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        return self.promote(curves, milestones)  # whether a new trial is allowed makes no difference to halving

    def _rungs(self, milestones: int) -> list[int]:
        rungs, at = [], self.min_resource
        while at < milestones:
            rungs.append(self._objective.next_due(at))
            at *= self.reduction_factor
        return list(dict.fromkeys(rung for rung in rungs if rung < milestones))

    @property
    def _objective(self) -> Objective:
        return measure_of(self.metric, self.objective).objective
