"""Freeze-thaw search: a trial is paused while another step is worth more, and continues when it is worth most.

After each report a model (see `gaussian_process`) forecasts where every trial would end. The value of a step (see
`acquisition`) is the expected improvement over the best end for each milestone that remains to that end.

- A running trial is paused if a paused trial or a new one is worth more.
- The paused trial that is worth most continues if it is worth more than a new one. So a bad start never loses a trial:
  it is weighed again with every report of any trial.
- If no new trial is allowed, a running trial is weighed against the paused ones alone. It continues as long as it
  would be promoted again.
- A trial is stopped for good only if its whole interval of plausible ends, `sure` standard deviations around the mean,
  is above the best end reached. Everything else is a pause.

With `grad_norm` the forecast also learns, within the sweep, what the gradient norm and the slope of the loss predict.
If workers differ in speed, the best trials continue on the faster ones (see `worker_speed`).

Invariants: those of every strategy (see `protocol`); the cache changes no answer. The first `design` trials each report
`first` times before any of them is weighed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweep.model.facts import Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ruling
from sweep.search.strategy.measure import Measure, measure_of
from sweep.search.strategy.policy import POLICY
from sweep.search.strategy.protocol import Curve, CurveStatus, Promotion
from sweep.search.strategy.sweep_forecast import ForecastCache, SweepForecast
from trainer.contract import Report


@dataclass
class FreezeThaw:
    """See the module.

    Args:
        metric: the name of the objective, or `auto`: the validation loss if there is one.
        grad_norm: whether the gradient norm and the slope of the loss are used.
        design: trials that are started before any is weighed.
        first: reports of a trial before it is weighed for the first time; see `rungs` for the next.
        sure: standard deviations around the mean beyond which a trial is stopped for good.
        candidates: configurations by which the value of a new trial is estimated.
        objective: the metric with its direction, and when it is measured. None: `metric` is a loss.
    """

    metric: str = "auto"
    grad_norm: bool = True
    design: int = 6
    first: int = 1
    sure: float = 4.0
    candidates: int = 128
    objective: Objective | None = None
    _measure: Measure = field(init=False, repr=False, compare=False)
    _cache: ForecastCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._measure = measure_of(self.metric, self.objective)
        self._cache = ForecastCache(self._measure, self.grad_norm)

    def verdict(
        self, number: int, curves: Mapping[int, Curve], milestones: int, new_allowed: bool = True
    ) -> Verdict | None:
        curve = curves[number]
        last = curve.reports[-1]
        value, positions = self._measure.value(last), self._measure.positions(milestones)
        measured = len(curve.reports) if self._measure.is_loss else len(self._cache.losses(curve, milestones))
        if last.final or measured >= positions:
            return None
        if not math.isfinite(value):
            why = f"FreezeThaw at milestone {last.milestone}: the {self._what} is {value}"
            return Verdict(last.milestone, value, why)
        if measured not in rungs(self.first, positions):
            return None
        if new_allowed and len(curves) < self.design:
            return self._verdict(last, f"no trial continues before the first {self.design} have started")
        sweep = self._cache.get(curves, milestones, judged=number)
        return self._weigh(number, sweep, new_allowed) if sweep is not None else None

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        return self._promotion(curves, milestones, worker, new_allowed=True)

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """The paused trial of the largest value, if two standard deviations of its end reach the best complete one."""
        promotion = self._promotion(curves, milestones, "", new_allowed=False)
        if promotion is None or not any(curve.status is CurveStatus.COMPLETE for curve in curves.values()):
            return promotion
        sweep = self._cache.get(curves, milestones)
        assert sweep is not None, "a promotion is made from a forecast"
        mean, sd = sweep.end(promotion.trial)
        best, end = math.exp(sweep.target), sweep.loss(mean)
        return promotion if may_reach(math.log(best), math.log(end), sd) else None

    def _weigh(self, number: int, sweep: SweepForecast, new_allowed: bool) -> Verdict | None:
        """The verdict by the forecast."""
        last = sweep.curves[number].reports[-1]
        mean, sd = sweep.end(number)
        value = sweep.value(number)
        other = sweep.best_paused((number,))[1]
        if new_allowed:
            other = max(other, sweep.value_of_new(self.candidates))
        best, shown = math.exp(sweep.target), self._measure.value_of
        basis = {
            "end": shown(sweep.loss(mean)),
            "end_sd": sd,
            "best": shown(best),
            "promise": value,
            "other": other,
        }
        reached = self._best_end(sweep)
        if reached is not None and mean - self.sure * sd > math.log(max(reached, 1e-300)):
            low = math.exp(mean - self.sure * sd)
            bound, side = ("most", "above") if self._measure.objective.maximised else ("least", "below")
            why = (
                f"its final {self._what} is forecast to be at {bound} {shown(low):.4f} ({self.sure:g} standard "
                f"deviations {side} the mean), worse than the best, {shown(reached):.4f}"
            )
            return self._verdict(last, why, Ruling.STOP, basis)
        forecast = self._forecast_text(sweep.loss(mean), sd)
        if value < other:
            return self._verdict(last, f"{forecast}; another trial has a larger expected improvement", basis=basis)
        if not new_allowed and reached is not None and not may_reach(sweep.target, mean, sd):
            return self._verdict(last, f"{forecast}, which does not reach the best, {shown(best):.4f}", basis=basis)
        if new_allowed and sweep.should_move(number):  # without a new trial, nothing would take its worker
            return self._verdict(last, f"{forecast}; a faster worker trains a less promising trial", basis=basis)
        return None

    def _best_end(self, sweep: SweepForecast) -> float | None:
        """The smallest loss at the end of a complete trial, without noise if that is known; None without one."""
        complete = [c for c in sweep.curves.values() if c.status is CurveStatus.COMPLETE and c.reports]
        seen = sweep.acquisition.observations
        if seen.smooth:
            ends = [seen.end_of(sweep.trials[c.number]) for c in complete if c.number in seen.smooth]
            return math.exp(min(ends)) if ends else None
        return min((self._measure.loss(curve.reports[-1]) for curve in complete), default=None)

    @property
    def _what(self) -> str:
        """What the numbers of a reason are."""
        return "loss" if self._measure.is_loss else self._measure.objective.name

    def _forecast_text(self, end: float, sd: float) -> str:
        """An end with its standard deviation, for a reason."""
        if self._measure.is_loss:
            return f"forecast final loss {end:.4f} (± {100 * sd:.1f} %)"
        low, high = (self._measure.value_of(end * math.exp(way * sd)) for way in (-1.0, 1.0))
        return f"forecast final {self._what} {self._measure.value_of(end):.4f} (± {abs(high - low) / 2:.4f})"

    def _promotion(
        self, curves: Mapping[int, Curve], milestones: int, worker: str, new_allowed: bool
    ) -> Promotion | None:
        """The paused trial of the largest value, if a new trial has no larger one or is not allowed.

        The best trials wait for a faster worker if this one is too slow for them.
        """
        paused = any(curve.status is CurveStatus.PAUSED for curve in curves.values())
        if not paused or (new_allowed and len(curves) < self.design):
            return None
        sweep = self._cache.get(curves, milestones)
        if sweep is None:
            return None
        number, value = sweep.best_paused(sweep.waiting_for_faster(worker) if worker else ())
        new = sweep.value_of_new(self.candidates) if new_allowed else -math.inf
        if number is None or value < new:
            return None
        mean, sd = sweep.end(number)
        end, best, shown = sweep.loss(mean), math.exp(sweep.target), self._measure.value_of
        basis = {"end": shown(end), "end_sd": sd, "best": shown(best), "promise": value, "new": new}
        reason = f"{self._forecast_text(end, sd)}; its expected improvement is the largest"
        return Promotion(number, reason, basis)

    def _verdict(
        self, last: Report, why: str, ruling: Ruling = Ruling.PAUSE, basis: Mapping[str, float] | None = None
    ) -> Verdict:
        reason = f"FreezeThaw at milestone {last.milestone}: {why}"
        return Verdict(last.milestone, self._measure.value(last), reason, ruling, basis or {})


def may_reach(best: float, end: float, sd: float) -> bool:
    """Whether an end may be as good as the best, all in log loss: see `Policy.reach`."""
    return end - POLICY.reach * sd < best


def rungs(first: int, milestones: int) -> list[int]:
    """The numbers of reports after which a trial is weighed.

    Each is 1.4 times the one before, and larger by at least one. A trial past three quarters runs to its end.
    """
    counts = [first]
    while (after := max(counts[-1] + 1, round(1.4 * counts[-1]))) <= max(0.75 * milestones, 1):
        counts.append(after)
    return counts
