"""Our strategy: each trial is frozen while another step promises more, and thawed when it promises most.

After each report a surrogate (see `surrogate`) forecasts where every trial would end, as a mean and a standard
deviation. A step's promise is the expected improvement over the best end, for each milestone that remains to that end.
A trial is paused when a paused trial or a new one promises more, and the paused trial that promises most goes on when
it promises more than a new one. So a trial is never lost by a bad start: its promise is weighed again with every
report of any trial. Where no new trial may be asked for, a running one is weighed against the paused ones alone, and
goes on as long as it would be promoted again.

The guard: a trial is stopped for good only where the whole interval of its plausible ends, `sure` standard deviations
around the mean, lies above the best end reached. All else is a pause.

With `grad_norm` the forecast also learns, within the sweep, what the gradient's norm and the loss's slope say of what
is still to come (β in `surrogate`).

Where workers differ in speed, what promises most goes on on the faster ones (see `places`).

Invariants: as every strategy's. The first `design` trials each report `first` times before any is weighed.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweep.model import Ruling, Verdict
from sweep.search.strategy.encoding import Floats, axes_of, encode
from sweep.search.strategy.forecast import Forecast, forecast
from sweep.search.strategy.observations import Known
from sweep.search.strategy.protocol import Curve, Promotion, TrialStatus
from sweep.search.strategy.worker_speed import Places, paces, places
from trainer.contract import Report

OWED_MORE = 1e3
SETTLED = (TrialStatus.COMPLETE, TrialStatus.FAILED)


@dataclass(frozen=True)
class FreezeThaw:
    """See the module.

    Args:
        metric: `val_loss`, `loss`, or `auto`: the validation loss where there is one.
        grad_norm: whether grad_norm and the slope are used.
        design: trials that are started before any is weighed.
        first: reports of a trial before it is weighed for the first time; see `rungs` for the next.
        sure: standard deviations of the guard.
        candidates: points that stand for what a new trial promises.
    """

    metric: str = "auto"
    grad_norm: bool = True
    design: int = 6
    first: int = 1
    sure: float = 4.0
    candidates: int = 128
    # The last forecast and what it was made from: a report is followed by a verdict and a promotion on the same
    # numbers.
    _last: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int, new: bool = True) -> Verdict | None:
        curve = curves[number]
        last = curve.reports[-1]
        value = self._loss(last)
        if last.final or len(curve.reports) >= milestones:
            return None
        if not math.isfinite(value):
            return Verdict(last.milestone, value, f"FreezeThaw at milestone {last.milestone}: the loss is {value}")
        if len(curve.reports) not in rungs(self.first, milestones):
            return None
        if new and len(curves) < self.design:
            return self._pause(last, value, f"the first {self.design} trials start before any goes on", {})
        seen = self._forecast(curves, milestones, but=number)
        if seen is None:
            return None
        known = self._last["known"][number]
        at = seen.points([known])
        mean, sd = (float(v[0]) for v in seen.ends(at))
        promise = float(_promise(seen, [known], milestones)[0])
        other = self._best_paused(seen, curves, milestones, (number,))[1]
        if new:
            other = max(other, self._new(seen, curves))
        basis = {"end": seen.loss(mean), "end_sd": sd, "best": math.exp(seen.best), "promise": promise, "other": other}
        done = [self._loss(c.reports[-1]) for c in curves.values() if c.status is TrialStatus.COMPLETE and c.reports]
        if done and mean - self.sure * sd > math.log(max(min(done), 1e-300)):
            low = math.exp(mean - self.sure * sd)
            why = f"its end is at least {low:.4f} ({self.sure:g} standard deviations), above the best, {min(done):.4f}"
            return Verdict(
                last.milestone, value, f"FreezeThaw at milestone {last.milestone}: {why}", Ruling.STOP, basis
            )
        expected = f"expected to end at {seen.loss(mean):.4f} (± {100 * sd:.1f} %)"
        if promise < other:
            return self._pause(last, value, f"{expected}, and another step promises more", basis)
        if not new and done and not _may_reach(seen.best, mean, sd):
            why = f"{expected}, which does not reach the best, {math.exp(seen.best):.4f}"
            return self._pause(last, value, why, basis)
        if new and self._moves(seen, curves, milestones, number):  # else nothing takes its place
            return self._pause(last, value, f"{expected}, and a faster worker trains what promises less", basis)
        return None

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        return self._promotion(curves, milestones, None, worker)

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """As `promote`, where no new trial may be asked for: the paused trial that promises most, as long as two
        standard deviations of its end still reach the best complete trial."""
        found = self._promotion(curves, milestones, -math.inf)
        if found is None or not any(curve.status is TrialStatus.COMPLETE for curve in curves.values()):
            return found
        best, end, sd = (found.basis[key] for key in ("best", "end", "end_sd"))
        return found if _may_reach(math.log(best), math.log(end), sd) else None

    def _promotion(
        self, curves: Mapping[int, Curve], milestones: int, bar: float | None, worker: str = ""
    ) -> Promotion | None:
        """The paused trial that promises most, where that is at least `bar`: what a new trial promises, if None.

        Contenders for which this worker is too slow wait for a faster one.
        """
        paused = [curve for curve in curves.values() if curve.status is TrialStatus.PAUSED]
        if not paused or (bar is None and len(curves) < self.design):
            return None
        seen = self._forecast(curves, milestones)
        if seen is None:
            return None
        waiting = self._waiting(seen, curves, milestones, worker) if worker else ()
        best, promise = self._best_paused(seen, curves, milestones, waiting)
        new = self._new(seen, curves) if bar is None else bar
        if best is None or promise < new:
            return None
        mean, sd = (float(v[0]) for v in seen.ends(seen.points([best])))
        basis = {"end": seen.loss(mean), "end_sd": sd, "best": math.exp(seen.best), "promise": promise, "new": new}
        reason = f"expected to end at {seen.loss(mean):.4f} (± {100 * sd:.1f} %), which promises most"
        return Promotion(best.number, reason, basis)

    def _pause(self, last: Report, value: float, why: str, basis: Mapping[str, float]) -> Verdict:
        reason = f"FreezeThaw at milestone {last.milestone}: {why}"
        return Verdict(last.milestone, value, reason, Ruling.PAUSE, basis)

    def _loss(self, report: Report) -> float:
        if self.metric == "loss" or report.val_loss is None:
            return report.loss
        return report.val_loss

    def _forecast(self, curves: Mapping[int, Curve], milestones: int, but: int | None = None) -> Forecast | None:
        """The forecast, in which all that runs is taken to end as expected; `but` is weighed and left out of that."""
        key = (
            milestones,
            [(n, len(c.reports), c.status if c.status in SETTLED else None) for n, c in sorted(curves.items())],
        )
        if self._last.get("key") != key:
            known = self._all_known(curves)
            found = forecast(list(known.values()), axes_of([one.params for one in known.values()]), milestones)
            self._last.clear()
            self._last.update(key=key, known=known, found=found)
        seen: Forecast | None = self._last["found"]
        if seen is None:
            return None
        known = self._last["known"]
        return seen.assuming([known[n] for n, c in curves.items() if c.status is TrialStatus.RUNNING and n != but])

    def _all_known(self, curves: Mapping[int, Curve]) -> dict[int, Known]:
        kept = [curve for _, curve in sorted(curves.items()) if curve.status is not TrialStatus.FAILED]
        signs = self._signs(kept) if self.grad_norm else {}
        return {
            c.number: Known(
                c.number,
                dict(c.params),
                tuple(self._loss(report) for report in c.reports),
                signs.get(c.number, ()),
                complete=c.status is TrialStatus.COMPLETE,
            )
            for c in kept
        }

    def _signs(self, curves: Sequence[Curve]) -> dict[int, tuple[float, ...]]:
        """log grad_norm and the slope of log loss at each trial's last report, against the mean of all trials there."""
        raw = [[self._raw_signs(curve.reports, at) for at in range(len(curve.reports))] for curve in curves]
        longest = max((len(one) for one in raw), default=0)
        mean = [np.nanmean([one[at] for one in raw if len(one) > at], axis=0) for at in range(longest)]
        found = {}
        for curve, one in zip(curves, raw, strict=True):
            sign = np.clip(np.array(one[-1]) - mean[len(one) - 1], -1.0, 1.0) if one else np.zeros(2)
            found[curve.number] = tuple(float(v) for v in sign)
        return found

    def _raw_signs(self, reports: Sequence[Report], at: int) -> tuple[float, float]:
        norm = reports[at].grad_norm
        last, before = self._loss(reports[at]), self._loss(reports[max(0, at - 1)])
        log_norm = math.log(norm) if math.isfinite(norm) and norm > 0 else 0.0
        return log_norm, math.log(before / last) if 0 < last < math.inf and 0 < before < math.inf else 0.0

    def _best_paused(
        self, seen: Forecast, curves: Mapping[int, Curve], milestones: int, but: Container[int] = ()
    ) -> tuple[Known | None, float]:
        known: Mapping[int, Known] = self._last["known"]
        paused = [
            known[number]
            for number, curve in sorted(curves.items())
            if curve.status is TrialStatus.PAUSED and number not in but and curve.reports
        ]
        if not paused:
            return None, -math.inf
        promise = _promise(seen, paused, milestones)
        at = int(promise.argmax())
        return paused[at], float(promise[at])

    def _moves(self, seen: Forecast, curves: Mapping[int, Curve], milestones: int, number: int) -> bool:
        """Whether a trial is to go on where it would end sooner."""
        found = self._places(seen, curves, milestones) if curves[number].worker else None
        if found is None or number not in found.contenders:
            return False
        others = sum(curves[other].status is TrialStatus.PAUSED for other in found.contenders)
        left = milestones - len(curves[number].reports)
        return found.faster(curves[number].worker, left, milestones) > others

    def _waiting(self, seen: Forecast, curves: Mapping[int, Curve], milestones: int, worker: str) -> list[int]:
        """The paused trials that wait for a faster worker than this one."""
        found = self._places(seen, curves, milestones)
        if found is None:
            return []
        waiting: list[int] = []
        for number in found.contenders:
            left = milestones - len(curves[number].reports)
            paused = curves[number].status is TrialStatus.PAUSED
            if paused and found.faster(worker, left, milestones) > len(waiting):
                waiting.append(number)
        return waiting

    def _places(self, seen: Forecast, curves: Mapping[int, Curve], milestones: int) -> Places | None:
        """None where no worker is known to be faster than another."""
        pace = paces(curves.values())
        if not pace:
            return None
        known = self._last["known"]
        open_ = [
            known[number]
            for number, curve in sorted(curves.items())
            if curve.reports and curve.status in (TrialStatus.RUNNING, TrialStatus.PAUSED)
        ]
        order = np.argsort(-_promise(seen, open_, milestones, owing=False), kind="stable")
        owed = {one.number for one in open_ if seen.owed(one)}
        return places(curves, pace, [open_[at].number for at in order], owed)

    def _new(self, seen: Forecast, curves: Mapping[int, Curve]) -> float:
        """What the best of a fixed sample of configurations promises as a new trial."""
        x = candidates(encode(seen.axes, [curve.params for _, curve in sorted(curves.items())]), self.candidates)
        return float(seen.promise(seen.new(x), np.full(len(x), float(seen.milestones))).max())


def _may_reach(best: float, end: float, sd: float) -> bool:
    """Whether two standard deviations of a log end reach the best one."""
    return end - 2.0 * sd < best


def rungs(first: int, milestones: int) -> list[int]:
    """After how many reports a trial is weighed: each half as far again as the last, the next at least; a trial that is
    past three quarters goes on to its end."""
    found = [first]
    while (after := max(found[-1] + 1, round(1.4 * found[-1]))) <= max(0.75 * milestones, 1):
        found.append(after)
    return found


def candidates(have: Floats, count: int) -> Floats:
    """Points in the ranges that the trials' points span; a coordinate of few different values takes those only."""
    rng = np.random.default_rng(0)  # a fixed sample, not a draw
    columns = []
    for k in range(have.shape[1]):
        values = np.unique(have[:, k])
        columns.append(rng.choice(values, count) if len(values) <= 8 and len(have) > 10 else rng.random(count))
    return np.array(columns).T.reshape(count, have.shape[1])


def _promise(seen: Forecast, known: Sequence[Known], milestones: int, owing: bool = True) -> Floats:
    """What going on with trials promises; with those it is owed, more than all else, unless that is not to count."""
    away = np.array([OWED_MORE * (owing and seen.owed(one)) - seen.shade(one) for one in known])
    found: Floats = seen.promise(seen.points(known), _left(known, milestones)) + away
    return found


def _left(known: Sequence[Known], milestones: int) -> Floats:
    return np.array([float(max(1, milestones - len(one.losses))) for one in known])
