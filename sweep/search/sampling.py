"""Samples the hyperparameters of one trial.

Invariant: a proposal is a pure function of the study's history and the trial's number. The sampler is built anew for
each number, with a seed of its own, so that a resumed sweep proposes what an undisturbed one would have proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.space import Space
from sweep.model.objectives import Objective
from sweep.search.distributions import suggest
from sweep.search.grid import GridProgress
from sweep.search.history import History, SharedSearchSpace
from sweep.search.optuna_private import FilteredStudy, set_search_space, stored_trial

# Builds a sampler from a seed.
SamplerFactory = Callable[[int], optuna.samplers.BaseSampler]


class TrialSampler:
    """Proposes hyperparameters for the trials of a study.

    Args:
        seed: the seed of the sweep.
        per_trial_seed: whether each trial gets a sampler with a seed of its own.
        history_bound: the most ended trials that a TPE sampler is shown; None: all.
        objective: says which of them are the best.
        trials: all trials that the study holds so far.
    """

    def __init__(  # noqa: PLR0913
        self,
        study: FilteredStudy,
        space: Space,
        factory: SamplerFactory,
        seed: int,
        *,
        per_trial_seed: bool,
        history_bound: int | None,
        objective: Objective,
        trials: Sequence[FrozenTrial],
    ) -> None:
        self._study, self._space, self._factory = study, space, factory
        self._seed, self._per_trial_seed = seed, per_trial_seed
        sampler = study.sampler
        bound = history_bound if isinstance(sampler, optuna.samplers.TPESampler) else None
        self.history = History(bound, objective)
        self._grid = GridProgress(sampler, trials) if isinstance(sampler, optuna.samplers.GridSampler) else None
        self._stopped = False

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing left to propose."""
        return self._stopped if self._grid is None else self._grid.exhausted

    def seed_for(self, number: int) -> None:
        """Give the study the sampler for the trial with this number."""
        if self._per_trial_seed:
            words = np.random.SeedSequence([self._seed, number]).generate_state(1)
            self._study.sampler = self._factory(int(words[0] >> 1))
        if isinstance(self._study.sampler, optuna.samplers.TPESampler):
            set_search_space(self._study.sampler, SharedSearchSpace(self.history))

    def sample(self, trial_id: int) -> tuple[optuna.Trial, dict[str, Any]]:
        """Sample the hyperparameters that a trial lacks; returns the trial with all of them.

        Args:
            trial_id: its id in the storage.
        """
        if self._grid is not None:
            self._grid.assign_point(self._study, trial_id)
        self._study.view = self.history.view
        try:
            trial = optuna.Trial(self._study, trial_id)
            params: dict[str, Any] = {}
            for parameter in self._space:
                if parameter.exists(params):
                    params[parameter.key] = suggest(trial, parameter.key, parameter.domain)
        finally:
            self._study.view = None
        return trial, params

    def note_asked(self, stored: FrozenTrial) -> None:
        """Note that this trial was asked, with the hyperparameters that the storage has."""
        if self._grid is not None:
            self._grid.mark_asked(stored.params)

    def tell(self, trial: optuna.Trial, value: float | None, state: TrialState) -> None:
        """Tell the study how a trial ended, by the sampler with the trial's seed.

        Raises:
            RuntimeError: the study refuses it.
        """
        self.seed_for(trial.number)
        try:
            self._study.tell(trial, value, state=state)
        except RuntimeError:  # the sampler asks to stop Optuna's loop, which we do not run; the trial is told by then
            if not stored_trial(self._study, trial).state.is_finished():
                raise
            self._stopped = True
