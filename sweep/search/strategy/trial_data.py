"""Turns learning curves into the data of the model: losses and features.

The features of a trial are the logarithm of the gradient norm and the slope of the log loss at its last report, each
relative to the mean of all trials at that milestone. The model learns within the sweep what they predict (β in
`gaussian_process`).

Invariants: pure; failed trials are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from trainer.contract import Report


def loss_of(report: Report, metric: str) -> float:
    """The loss of a report: the training loss if `metric` is `loss` or there is no validation loss."""
    return report.loss if metric == "loss" or report.val_loss is None else report.val_loss


def trial_data(curves: Mapping[int, Curve], metric: str, with_features: bool) -> dict[int, TrialData]:
    """The data of all trials that have not failed, by number.

    Args:
        with_features: whether features are computed.
    """
    kept = [curve for _, curve in sorted(curves.items()) if curve.status is not CurveStatus.FAILED]
    features = _features(kept, metric) if with_features else {}
    return {
        curve.number: TrialData(
            curve.number,
            dict(curve.params),
            tuple(loss_of(report, metric) for report in curve.reports),
            features.get(curve.number, ()),
            complete=curve.status is CurveStatus.COMPLETE,
        )
        for curve in kept
    }


def _features(curves: Sequence[Curve], metric: str) -> dict[int, tuple[float, ...]]:
    """The features of each trial, clipped to [-1, 1]; zeros without reports."""
    raw = [[_raw_features(curve.reports, at, metric) for at in range(len(curve.reports))] for curve in curves]
    longest = max((len(rows) for rows in raw), default=0)
    means = [np.nanmean([rows[at] for rows in raw if len(rows) > at], axis=0) for at in range(longest)]
    features = {}
    for curve, rows in zip(curves, raw, strict=True):
        relative = np.clip(np.array(rows[-1]) - means[len(rows) - 1], -1.0, 1.0) if rows else np.zeros(2)
        features[curve.number] = tuple(float(value) for value in relative)
    return features


def _raw_features(reports: Sequence[Report], at: int, metric: str) -> tuple[float, float]:
    """Log gradient norm and decrease of the log loss at a report; 0 if a number is missing or not finite."""
    norm = reports[at].grad_norm
    last, before = loss_of(reports[at], metric), loss_of(reports[max(0, at - 1)], metric)
    log_norm = math.log(norm) if math.isfinite(norm) and norm > 0 else 0.0
    return log_norm, math.log(before / last) if 0 < last < math.inf and 0 < before < math.inf else 0.0
