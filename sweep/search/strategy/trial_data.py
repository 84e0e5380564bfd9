"""Turns learning curves into the data of the model: losses and features.

The features of a trial are the logarithm of the gradient norm and the slope of the log loss at its last report, each
relative to the mean of all trials at that milestone. If the objective is no loss, the log loss itself is a third one.
The model learns within the sweep what they predict (β in `gaussian_process`), so also how far a metric follows the
loss.

Invariants: pure; failed trials are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweep.model.objectives import Objective
from sweep.search.strategy.encoding import Floats
from sweep.search.strategy.measure import AUTO, Measure
from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from trainer.contract import Report

# Where the objective is another metric: the loss, of which the features are computed.
LOSSES = Measure(Objective(AUTO))
# Differences of log loss are small beside those of the other features.
LEVEL = 4.0


@dataclass(slots=True)
class CurveNumbers:
    """The numbers of each curve that do not depend on other curves. They are computed again only if a curve changes.

    Args:
        measure: how the objective is read.
    """

    measure: Measure
    _read: dict[int, tuple[Curve, tuple[tuple[float, ...], tuple[float, ...]]]] = field(default_factory=dict)
    _raw: dict[int, tuple[Curve, Floats]] = field(default_factory=dict)

    def read(self, curve: Curve, milestones: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The losses of a curve's measurements and the variances of their logarithms; see `Measure.read`."""
        known = self._read.get(curve.number)
        if known is None or known[0].reports is not curve.reports:
            known = self._read[curve.number] = (curve, self.measure.read(curve.reports, milestones))
        return known[1]

    @property
    def width(self) -> int:
        """How many features a trial has."""
        return 2 if self.measure.is_loss else 3

    def raw_features(self, curve: Curve) -> Floats:
        """See `_raw_features`, at each of a curve's reports; shape (reports, features)."""
        known = self._raw.get(curve.number)
        if known is None or known[0].reports is not curve.reports:
            reports = tuple(curve.reports)
            rows = [_raw_features(reports, at, self.measure) for at in range(len(reports))]
            known = self._raw[curve.number] = (curve, np.array(rows, dtype=np.float64).reshape(len(rows), self.width))
        return known[1]


def trial_data(
    curves: Mapping[int, Curve], milestones: int, with_features: bool, numbers: CurveNumbers
) -> dict[int, TrialData]:
    """The data of all trials that have not failed, by number.

    Args:
        milestones: of a trial that runs to its end.
        with_features: whether features are computed.
        numbers: how curves are read, with what is known of them from an earlier call.
    """
    kept = [curve for _, curve in sorted(curves.items()) if curve.status is not CurveStatus.FAILED]
    features = _features(kept, numbers) if with_features else {}
    data = {}
    for curve in kept:
        losses, variances = numbers.read(curve, milestones)
        complete = curve.status is CurveStatus.COMPLETE
        own = features.get(curve.number, ())
        data[curve.number] = TrialData(
            curve.number, dict(curve.params), losses, own, complete=complete, variances=variances
        )
    return data


def _features(curves: Sequence[Curve], numbers: CurveNumbers) -> dict[int, tuple[float, ...]]:
    """The features of each trial, clipped to [-1, 1]; zeros without reports."""
    raw = [numbers.raw_features(curve) for curve in curves]
    longest = max((len(rows) for rows in raw), default=0)
    means = [np.nanmean([rows[at] for rows in raw if len(rows) > at], axis=0) for at in range(longest)]
    features = {}
    for curve, rows in zip(curves, raw, strict=True):
        relative = np.clip(rows[-1] - means[len(rows) - 1], -1.0, 1.0) if len(rows) else np.zeros(numbers.width)
        features[curve.number] = tuple(float(value) for value in relative)
    return features


def _raw_features(reports: Sequence[Report], at: int, measure: Measure) -> tuple[float, ...]:
    """Log gradient norm, decrease of the log loss at a report, and if the objective is no loss, that log loss itself; 0
    if a number is missing or not finite.
    """
    losses = measure if measure.is_loss else LOSSES
    norm = reports[at].grad_norm
    last, before = losses.loss(reports[at]), losses.loss(reports[max(0, at - 1)])
    log_norm = math.log(norm) if math.isfinite(norm) and norm > 0 else 0.0
    slope = math.log(before / last) if 0 < last < math.inf and 0 < before < math.inf else 0.0
    if measure.is_loss:
        return log_norm, slope
    return log_norm, slope, LEVEL * math.log(last) if 0 < last < math.inf else 0.0
