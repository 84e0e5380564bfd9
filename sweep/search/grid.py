"""Which points of a grid were asked, and which comes next.

Invariant: a point is asked once, even if a person enqueued it. Optuna's `GridSampler` takes a trial's number for its
point, although an enqueued trial may have that number or may have had that point. So each trial's point is written to
its system attributes before it is sampled, as the sampler itself does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from sweep.search.optuna_private import ENQUEUED_PARAMS, GRID_POINT, grid_points, set_grid_point, system_attributes


class GridProgress:
    """The progress of a study through the grid of a sampler.

    Args:
        trials: all trials that the study holds so far.
    """

    def __init__(self, sampler: GridSampler, trials: Iterable[FrozenTrial]) -> None:
        self._grid, self._points = grid_points(sampler)
        self._remaining = dict.fromkeys(range(len(self._points)))
        for trial in trials:
            if trial.state is not TrialState.WAITING:
                self.mark_asked(trial.params)

    @property
    def exhausted(self) -> bool:
        """Whether every point was asked."""
        return not self._remaining

    def assign_point(self, study: optuna.Study, trial_id: int) -> None:
        """Assign a trial its point: one that agrees with what was enqueued for it. Does nothing if it has a point."""
        attributes = system_attributes(study, trial_id)
        if GRID_POINT in attributes:
            return
        enqueued = attributes.get(ENQUEUED_PARAMS, {})
        candidates = (point for points in (self._remaining, range(len(self._points))) for point in points)
        point = next((point for point in candidates if self._agrees(point, enqueued)), 0)
        set_grid_point(study, trial_id, self._grid, point)

    def mark_asked(self, params: Mapping[str, Any]) -> None:
        """Note that a trial has these hyperparameters; they need not be a point of the grid."""
        for point in [point for point in self._remaining if params and self._points[point] == params]:
            del self._remaining[point]

    def _agrees(self, point: int, enqueued: Mapping[str, Any]) -> bool:
        return all(self._points[point].get(key) == value for key, value in enqueued.items())
