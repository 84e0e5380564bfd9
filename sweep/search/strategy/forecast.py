"""Forecasts where the trials of a sweep would end: observations are turned into a fitted model.

Invariants: pure and deterministic; the same trials give the same forecast in whatever order they are handed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sweep.search.strategy.encoding import Axis, Floats
from sweep.search.strategy.gaussian_process import GaussianProcess, condition_on_means, fit
from sweep.search.strategy.kernel import Ints, KernelParameters, Points, noise
from sweep.search.strategy.likelihood import DEFAULT, LikelihoodSearch
from sweep.search.strategy.observations import (
    Observations,
    TrialData,
    informative_reports,
    observe,
    own_deviation,
)
from sweep.search.strategy.policy import POLICY, Policy


@dataclass(frozen=True)
class Incumbent:
    """The trial that others are measured against.

    Args:
        target: log loss that an end must be below to count as better than this trial's.
        end: its end, one row.
    """

    target: float
    end: Points


@dataclass(frozen=True)
class Forecast:
    """A model that is fitted to the observations of a sweep.

    Args:
        order: rows of the observations, by their ends: those of complete trials; without one, those that the model
            expects of all trials.
        incumbent: the best complete trial; without one, the trial that is expected to end best.
        runner_up: if no trial is complete, the trial that is expected to end second best.
        others_running: some trials run besides those that are weighed; their ends count as observed.
    """

    observations: Observations
    model: GaussianProcess
    order: Ints
    incumbent: Incumbent
    runner_up: Incumbent | None
    others_running: bool = False

    def ends(self, at: Points) -> tuple[Floats, Floats]:
        """Mean of y at these ends, and the standard deviation of its difference to y at the incumbent's end."""
        return self.model.predict(at, self.incumbent.end)

    def loss(self, y: float) -> float:
        """The loss that a value of y at the end stands for."""
        return self.observations.loss_of_end(y)

    def assuming(self, running: Sequence[TrialData]) -> Forecast:
        """The forecast if these trials end as it expects them to."""
        if not running:
            return self
        most = self.observations.policy.max_trials
        chosen = sorted(running, key=lambda trial: (-len(trial.losses), trial.number))[:most]
        model = condition_on_means(self.model, self.observations.ends(chosen))
        return replace(self, model=model, others_running=True)


def forecast(
    trials: Sequence[TrialData], axes: tuple[Axis, ...], milestones: int, policy: Policy = POLICY
) -> Forecast | None:
    """The forecast of a sweep; None if too little is observed (see `observe`)."""
    observations = observe(trials, axes, milestones, policy)
    if observations is None:
        return None
    model = fit_model(observations)
    if observations.variances:
        observations = observations.smoothed(smooth(observations, model))
    ends = observations.ends(observations.trials)
    y_end = np.array([observations.end_of(t) if t.complete else math.inf for t in observations.trials])
    complete = bool(observations.complete.any())
    if not complete:
        y_end, _ = model.predict(ends)
    order = np.argsort(y_end, kind="stable")
    first, second = (
        Incumbent(float(y_end[row]) - policy.min_improvement, ends.rows(np.array([row]))) for row in order[:2]
    )
    return Forecast(observations, model, order, first, None if complete else second)


def fit_model(observations: Observations) -> GaussianProcess:
    """The model, fitted to the most informative reports."""
    variance = observations.policy.feature_variance if observations.features else 0.0
    parameters = replace(kernel_parameters(observations), features=variance)
    reports = informative_reports(observations)
    ends = observations.ends([trial for trial, _ in reports])
    points = replace(ends, t=np.array([milestone / observations.milestones for _, milestone in reports]))
    y = np.array([observations.y[trial.number][milestone - 1] for trial, milestone in reports])
    return fit(points, y, parameters, known=_known(observations, reports))


def smooth(observations: Observations, model: GaussianProcess) -> dict[int, Floats]:
    """y of each trial less what the model takes for its known noise, by its number, shape (reports,).

    Of the reports that the model is fitted to, that is their mean given all of these; another one is weighed against
    what the model expects there.
    """
    assert model.known is not None
    counts = [len(trial.losses) for trial in observations.trials]
    at = observations.ends(observations.trials).rows(np.repeat(np.arange(len(counts)), counts))
    places = np.concatenate([np.arange(1, count + 1) for count in counts])
    at = replace(at, t=places / observations.milestones)
    y = np.concatenate([observations.y[trial.number] for trial in observations.trials])
    known = np.concatenate([observations.variances[trial.number] for trial in observations.trials])
    mean, sd = model.predict(at)
    expected = sd**2 + model.scale * noise(at.t, model.parameters)
    less = y + (mean - y) * known / (known + expected)
    rows = {(int(number), int(place)): row for row, (number, place) in enumerate(zip(at.trial, places, strict=True))}
    fitted = [
        rows[int(number), round(float(t) * observations.milestones)]
        for number, t in zip(model.seen.trial, model.seen.t, strict=True)
    ]
    less[fitted] = model.y - model.known / model.scale * model.alpha
    parts = np.split(less, np.cumsum(counts)[:-1])
    return {trial.number: part for trial, part in zip(observations.trials, parts, strict=True)}


def _known(observations: Observations, reports: Sequence[tuple[TrialData, int]]) -> Floats | None:
    """The known variances of y at these reports; None if none is known."""
    if not observations.variances:
        return None
    return np.array([observations.variances[trial.number][milestone - 1] for trial, milestone in reports])


def kernel_parameters(observations: Observations) -> KernelParameters:
    """The most likely parameters of the kernel, by the reports at `Policy.shape_marks`."""
    policy = observations.policy
    marks = sorted({max(1, round(share * observations.milestones)) for share in policy.shape_marks})
    reached = {t.number: [mark for mark in marks if mark <= len(t.losses)] for t in observations.trials}
    order = sorted(observations.trials, key=lambda trial: (-len(reached[trial.number]), trial.number))
    reports = [(trial, mark) for trial in order for mark in reached[trial.number]][: policy.shape_reports]
    gaps = {number: observations.y[number][m[-1] - 1] - observations.best[m[-1] - 1] for number, m in reached.items()}
    rows = np.array([observations.rows[trial.number] for trial, _ in reports])
    data: tuple[np.ndarray[Any, Any], ...] = (
        observations.x[rows],
        np.array([mark / observations.milestones for _, mark in reports]),
        rows,
        np.array([own_deviation(gaps[trial.number], policy) for trial, _ in reports]),
        np.array([observations.y[trial.number][mark - 1] for trial, mark in reports]),
    )
    known = _known(observations, reports)
    data = data if known is None else (*data, known)
    rounds = 2 if len(reports) < policy.shape_reports else 1
    return _most_likely(tuple(array.tobytes() for array in data), tuple(_column_groups(observations.axes)), rounds)


def _column_groups(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """The columns of each axis."""
    columns, groups = 0, []
    for axis in axes:
        groups.append(tuple(range(columns, columns + axis.width)))
        columns += axis.width
    return groups


@lru_cache(maxsize=64)
def _most_likely(data: tuple[bytes, ...], groups: tuple[tuple[int, ...], ...], rounds: int) -> KernelParameters:
    """The most likely parameters. The cache is what `Policy.shape_marks` is for: most reports leave the data as is.

    Args:
        data: x, t, trial, own and y of the reports, and known variances of y if there are any, as bytes, since arrays
            are no keys of a cache.
    """
    x, t, own, y = (np.frombuffer(data[k]) for k in (0, 1, 3, 4))
    n = len(t)
    seen = Points(x.reshape(n, -1), t, np.frombuffer(data[2], dtype=np.int64), np.zeros((n, 0)), own)
    known = np.frombuffer(data[5]) if len(data) > 5 else None
    return LikelihoodSearch(seen, y, DEFAULT, groups, known).run(rounds)
