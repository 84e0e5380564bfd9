"""Turns learning curves into the data of the model: losses and features.

The features of a trial are the logarithm of the gradient norm and the slope of the log loss at its last report, each
relative to the mean of all trials at that milestone. The model learns within the sweep what they predict (β in
`gaussian_process`).

Invariants: pure; failed trials are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweep.search.strategy.encoding import Floats
from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from trainer.contract import Report


def loss_of(report: Report, metric: str) -> float:
    """The loss of a report: the training loss if `metric` is `loss` or there is no validation loss."""
    return report.loss if metric == "loss" or report.val_loss is None else report.val_loss


@dataclass(slots=True)
class CurveNumbers:
    """The numbers of each curve that do not depend on other curves. They are computed again only if a curve changes.

    Args:
        metric: see `loss_of`.
    """

    metric: str
    _losses: dict[int, tuple[Curve, tuple[float, ...]]] = field(default_factory=dict)
    _raw: dict[int, tuple[Curve, Floats]] = field(default_factory=dict)

    def losses(self, curve: Curve) -> tuple[float, ...]:
        """The losses of a curve's reports."""
        known = self._losses.get(curve.number)
        if known is None or known[0].reports is not curve.reports:
            known = (curve, tuple(loss_of(report, self.metric) for report in curve.reports))
            self._losses[curve.number] = known
        return known[1]

    def raw_features(self, curve: Curve) -> Floats:
        """See `_raw_features`, at each of a curve's reports; shape (reports, 2)."""
        known = self._raw.get(curve.number)
        if known is None or known[0].reports is not curve.reports:
            reports = tuple(curve.reports)
            rows = [_raw_features(reports, at, self.metric) for at in range(len(reports))]
            known = self._raw[curve.number] = (curve, np.array(rows, dtype=np.float64).reshape(len(rows), 2))
        return known[1]


def trial_data(
    curves: Mapping[int, Curve], metric: str, with_features: bool, numbers: CurveNumbers | None = None
) -> dict[int, TrialData]:
    """The data of all trials that have not failed, by number.

    Args:
        with_features: whether features are computed.
        numbers: what is known of the curves from an earlier call.
    """
    numbers = CurveNumbers(metric) if numbers is None else numbers
    kept = [curve for _, curve in sorted(curves.items()) if curve.status is not CurveStatus.FAILED]
    features = _features(kept, numbers) if with_features else {}
    return {
        curve.number: TrialData(
            curve.number,
            dict(curve.params),
            numbers.losses(curve),
            features.get(curve.number, ()),
            complete=curve.status is CurveStatus.COMPLETE,
        )
        for curve in kept
    }


def _features(curves: Sequence[Curve], numbers: CurveNumbers) -> dict[int, tuple[float, ...]]:
    """The features of each trial, clipped to [-1, 1]; zeros without reports."""
    raw = [numbers.raw_features(curve) for curve in curves]
    longest = max((len(rows) for rows in raw), default=0)
    means = [np.nanmean([rows[at] for rows in raw if len(rows) > at], axis=0) for at in range(longest)]
    features = {}
    for curve, rows in zip(curves, raw, strict=True):
        relative = np.clip(rows[-1] - means[len(rows) - 1], -1.0, 1.0) if len(rows) else np.zeros(2)
        features[curve.number] = tuple(float(value) for value in relative)
    return features


def _raw_features(reports: Sequence[Report], at: int, metric: str) -> tuple[float, float]:
    """Log gradient norm and decrease of the log loss at a report; 0 if a number is missing or not finite."""
    norm = reports[at].grad_norm
    last, before = loss_of(reports[at], metric), loss_of(reports[max(0, at - 1)], metric)
    log_norm = math.log(norm) if math.isfinite(norm) and norm > 0 else 0.0
    return log_norm, math.log(before / last) if 0 < last < math.inf and 0 < before < math.inf else 0.0
