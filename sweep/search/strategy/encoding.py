"""Hyperparameters as points: what the surrogate calls near.

Invariants: pure; a parameter that takes numbers is one coordinate in [0, 1] over its range, by its logarithm where all
values are positive and span a factor of at least `LOG_SPAN`; any other parameter is one coordinate for each of its
values. A parameter that a trial lacks (a conditional one) stands in the middle of its coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LOG_SPAN = 8.0


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter: a range of numbers, or `words` where its values are not numbers."""

    key: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    words: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return len(self.words) or 1

    def encode(self, values: Sequence[Any]) -> Floats:
        """Coordinates of values, shape (len(values), width)."""
        if self.words:
            # Two different words lie one apart, as the ends of a range do.
            return np.array([[math.sqrt(0.5) * (str(value) == word) for word in self.words] for value in values])
        if set(map(type, values)) <= {int, float}:
            at = np.array(values, dtype=np.float64)
            at[~np.isfinite(at)] = math.nan
        else:
            at = np.array([value if is_number(value) else math.nan for value in values], dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            low, high, at = math.log(low), math.log(high), np.log(np.maximum(at, 1e-300))
        share = (at - low) / (high - low) if high > low else np.full(len(at), 0.5)
        return np.where(np.isnan(share), 0.5, share)[:, None]


def axis(key: str, values: Iterable[Any], log: bool | None = None) -> Axis:
    """The axis of a parameter from its values, or from the bounds of its range."""
    known = [value for value in values if value is not None]
    numbers = [float(value) for value in known if is_number(value)]
    if len(numbers) < len(known) or not numbers:
        return Axis(key, words=tuple(sorted({str(value) for value in known})))
    low, high = min(numbers), max(numbers)
    return Axis(key, low, high, log if log is not None else low > 0 and high >= LOG_SPAN * low)


def axes_of(params: Sequence[Mapping[str, Any]]) -> tuple[Axis, ...]:
    """The axes that the parameters of some trials span; those that never vary are left out."""
    keys = sorted({key for one in params for key in one})
    found = []
    for key in keys:
        values = [one[key] for one in params if key in one]
        if any(value != values[0] for value in values):
            found.append(axis(key, values))
    return tuple(found)


def encode(axes: Sequence[Axis], params: Sequence[Mapping[str, Any]]) -> Floats:
    """Points of shape (len(params), sum of the axes' widths)."""
    if not params or not axes:
        return np.zeros((len(params), sum(a.width for a in axes)))
    return np.hstack([a.encode([one.get(a.key) for one in params]) for a in axes])


def gaps(x: Floats, others: Floats) -> Floats:
    """The greatest difference in any coordinate, shape (len(x), len(others))."""
    gap = np.zeros((len(x), len(others)))
    for k in range(x.shape[1]):
        np.maximum(gap, np.abs(x[:, k, None] - others[None, :, k]), out=gap)
    return gap
