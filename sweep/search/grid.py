"""Which points of a grid were asked for, and which comes next.

Invariant: a point is asked for once, also where a person enqueued it. Optuna's `GridSampler` takes a trial's number for
its point, whether or not an enqueued trial stands at that number or has had that point: so each trial is told its
point before it is sampled, in the way in which the sampler itself tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

# System attributes of a trial, as Optuna's sampler and its `enqueue_trial` call them.
POINT, GRID, GIVEN = "grid_id", "search_space", "fixed_params"


class GridWalk:
    """A walk over the grid of a sampler.

    Args:
        trials: all that the study holds so far.
    """

    def __init__(self, sampler: GridSampler, trials: Iterable[FrozenTrial]) -> None:
        self._grid = sampler._search_space
        self._points = [dict(zip(sampler._param_names, values, strict=True)) for values in sampler._all_grids]
        self._left = dict.fromkeys(range(len(self._points)))
        for trial in trials:
            if trial.state is not TrialState.WAITING:
                self.asked(trial.params)

    @property
    def exhausted(self) -> bool:
        """Whether every point was asked for."""
        return not self._left

    def place(self, study: optuna.Study, trial_id: int) -> None:
        """Say which point a trial is, or fills up what was enqueued of it; nothing where that was said before."""
        known = study._storage.get_trial_system_attrs(trial_id)
        if POINT in known:
            return
        given = known.get(GIVEN, {})
        fitting = (point for points in (self._left, range(len(self._points))) for point in points)
        point = next((point for point in fitting if self._fits(point, given)), 0)
        study._storage.set_trial_system_attr(trial_id, GRID, self._grid)
        study._storage.set_trial_system_attr(trial_id, POINT, point)

    def asked(self, params: Mapping[str, Any]) -> None:
        """A trial has these hyperparameters: its point, if it is one, was asked for."""
        for point in [point for point in self._left if params and self._points[point] == params]:
            del self._left[point]

    def _fits(self, point: int, given: Mapping[str, Any]) -> bool:
        return all(self._points[point].get(key) == value for key, value in given.items())
