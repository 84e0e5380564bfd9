"""Encodes hyperparameters as points, whose distances the kernel uses.

Invariants: pure. A numeric parameter is one coordinate in [0, 1] over its range. The coordinate is logarithmic if all
values are positive and span a factor of at least `LOG_SPAN`. Any other parameter is one coordinate for each of its
values. A parameter that a trial lacks (a conditional one) is encoded as the middle of its coordinates.
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
    """Whether a value is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Axis:
    """The coordinates of one parameter: a range of numbers, or `categories` if its values are not numbers.

    Args:
        log: whether the coordinate is logarithmic.
        categories: the values as text, ascending.
    """

    key: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many coordinates it has."""
        return len(self.categories) or 1

    def encode(self, values: Sequence[Any]) -> Floats:
        """The coordinates of values, shape (len(values), width)."""
        if self.categories:
            # Two different categories are one apart, as are the ends of a range.
            columns = {name: column for column, name in enumerate(self.categories)}
            points = np.zeros((len(values), self.width))
            for row, value in enumerate(values):
                if (column := columns.get(str(value))) is not None:
                    points[row, column] = math.sqrt(0.5)
            return points
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
    """The axis of a parameter, from its values or from the bounds of its range.

    Args:
        log: whether it is logarithmic; None: decided by the values.
    """
    given = [value for value in values if value is not None]
    numbers = [float(value) for value in given if is_number(value)]
    if len(numbers) < len(given) or not numbers:
        return Axis(key, categories=tuple(sorted({str(value) for value in given})))
    low, high = min(numbers), max(numbers)
    return Axis(key, low, high, log if log is not None else low > 0 and high >= LOG_SPAN * low)


def axes_of(params: Sequence[Mapping[str, Any]]) -> tuple[Axis, ...]:
    """The axes of the parameters of some trials; parameters that never vary are left out."""
    axes = []
    for key in sorted({key for trial in params for key in trial}):
        values = [trial[key] for trial in params if key in trial]
        if any(value != values[0] for value in values):
            axes.append(axis(key, values))
    return tuple(axes)


def encode(axes: Sequence[Axis], params: Sequence[Mapping[str, Any]]) -> Floats:
    """The points of trials, shape (len(params), sum of the axes' widths)."""
    if not params or not axes:
        return np.zeros((len(params), sum(a.width for a in axes)))
    return np.hstack([a.encode([trial.get(a.key) for trial in params]) for a in axes])


def gaps(x: Floats, others: Floats) -> Floats:
    """The greatest difference in any coordinate between two sets of points, shape (len(x), len(others))."""
    gap = np.zeros((len(x), len(others)))
    for k in range(x.shape[1]):
        np.maximum(gap, np.abs(x[:, k, None] - others[None, :, k]), out=gap)
    return gap
