"""Axes for plots of trials against their hyperparameters, from the distributions that an Optuna study keeps.

Invariants: a categorical axis has its choices at 0, 1, 2, … in the order of the space. Labels are plain text in which
`<`, `>` and `&` are escaped, since Plotly reads labels as a subset of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.report.formatting import param, short_keys

# More labels than this could not be read; then every second or third choice, and so on, has one.
MOST_TICKS = 40


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that can be placed in a plot: complete or pruned, with a finite value.

    Args:
        value: the objective; of a pruned trial, its last report that the study was told.
        params: stored values by key, as Optuna keeps them.
        worst: the worst of its finite reports and its value.
    """

    number: int
    pruned: bool
    value: float
    params: dict[str, Any]
    worst: float


@dataclass(frozen=True, slots=True)
class Axis:
    """The axis of one quantity.

    Args:
        key: of the hyperparameter; title: its short name, escaped for Plotly.
        low, high: the ends of the axis; of a categorical one, 0 and the last choice's index; of the objective, the best
            and the worst value, whichever is larger.
        choices: of a categorical hyperparameter, in the order of the space.
    """

    key: str
    title: str
    low: float
    high: float
    log: bool = False
    choices: tuple[Any, ...] = ()
    is_objective: bool = False

    def coordinate(self, value: Any) -> float:
        """The stored value on this axis; of a choice, its index."""
        return float(self.choices.index(value)) if self.choices else float(value)

    def share(self, value: Any) -> float:
        """The position between the axis's ends, 0 at its low and 1 at its high end."""
        low, high, at = (self._scaled(number) for number in (self.low, self.high, self.coordinate(value)))
        return (at - low) / (high - low) if high != low else 0.5

    def label(self, value: Any) -> str:
        return escape(param(value, self.key), quote=False)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions between 0 and 1, with their labels: each choice, or both ends and what is between them."""
        if self.choices:
            step = -(-len(self.choices) // MOST_TICKS)
            shown = range(0, len(self.choices), step)
            return [(index / self.high if self.high else 0.5, self.label(self.choices[index])) for index in shown]
        return [(self.share(number), self.label(number)) for number in self._round_numbers()]

    def _round_numbers(self) -> list[float]:
        """The ends of a numeric axis and a few numbers between them: powers of ten, or quarters of the way."""
        if self.low == self.high:
            return [self.low]
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            inner = [10.0**power for power in powers if self.low * 1.5 < 10.0**power < self.high / 1.5]
        else:
            inner = [self.low + (self.high - self.low) * quarter / 4 for quarter in (1, 2, 3)]
        return [self.low, *inner, self.high]

    def _scaled(self, number: float) -> float:
        return math.log10(number) if self.log else number


def points_of(study: optuna.Study) -> list[Point]:
    """The complete and the pruned trials of a study, by number; those without a finite value are left out."""
    points = (_point(trial, is_maximised(study)) for trial in study.get_trials(deepcopy=False))
    return [point for point in points if point is not None]


def is_maximised(study: optuna.Study) -> bool:
    """Whether more is better."""
    return study.direction is optuna.study.StudyDirection.MAXIMIZE


def _point(trial: FrozenTrial, maximised: bool) -> Point | None:
    pruned = trial.state is TrialState.PRUNED
    if not pruned and trial.state is not TrialState.COMPLETE:
        return None
    reported = trial.intermediate_values
    value = reported[max(reported)] if pruned and reported else trial.value
    if value is None or not math.isfinite(value):
        return None
    worst = (min if maximised else max)(filter(math.isfinite, (value, *reported.values())))
    return Point(trial.number, pruned, value, trial.params, worst)


def axes_of(study: optuna.Study, points: Iterable[Point]) -> list[Axis]:
    """An axis for each hyperparameter that one of these trials has, in the order in which they first occur."""
    keys = list(dict.fromkeys(key for point in points for key in point.params))
    distributions = {
        key: dist for trial in study.get_trials(deepcopy=False) for key, dist in trial.distributions.items()
    }
    names = short_keys(keys)
    return [_axis(key, names[key], distributions[key]) for key in keys]


def _axis(key: str, name: str, distribution: BaseDistribution) -> Axis:
    title = escape(name, quote=False)
    if isinstance(distribution, CategoricalDistribution):
        return Axis(key, title, 0, len(distribution.choices) - 1, choices=tuple(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return Axis(key, title, distribution.low, distribution.high, distribution.log)


def value_axis(points: Sequence[Point], metric: str, maximised: bool = False) -> Axis:
    """The objective's axis: from the best value, at its lower end, to the worst of the complete trials.

    Without a complete trial it spans the pruned ones.
    """
    values = [point.value for point in points if not point.pruned] or [point.value for point in points]
    best, worst = (max(values), min(values)) if maximised else (min(values), max(values))
    return Axis(metric, escape(metric, quote=False), best, worst, is_objective=True)
