"""Every access to a private attribute of Optuna: nothing else in `sweep` touches one (a test walks the syntax trees).

Each function names the attribute and says why the public interface does not do. When Optuna is updated, this is the
module to check.

Invariant: nothing here keeps state, except what a `FilteredStudy` is told to show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Container, Generator, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import GridSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from trainer.room import NOT_THE_VALUE

# System attributes of a trial, as Optuna's `GridSampler` and its `enqueue_trial` name them.
GRID_POINT, GRID_SPACE, ENQUEUED_PARAMS = "grid_id", "search_space", "fixed_params"


class FilteredStudy(optuna.Study):
    """A study that can show other trials than it holds, for as long as a sampler proposes.

    Overrides `Study._get_trials`: all samplers of Optuna read trials through it, and the public `get_trials` calls it.

    Args:
        view: returns the trials to show; None: all that the storage holds.
    """

    view: Callable[[], list[FrozenTrial]] | None = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self.view is None:
            return super()._get_trials(deepcopy, states, use_cache)
        trials = [trial for trial in self.view() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class ForwardJournalBackend(JournalFileBackend):
    """The file of a journal, read forwards only, by one storage.

    Overrides `JournalFileBackend.read_logs` and reads `_log_number_offset`: Optuna keeps the place of every line for as
    long as the process lives, over a hundred bytes a line, and asks only for that of the next one.
    """

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        place = self._log_number_offset.get(log_number_from)
        if place is not None:
            self._log_number_offset = {log_number_from: place}
        yield from super().read_logs(log_number_from)


class CheckedJournalStorage(JournalStorage):
    """The storage of a journal whose damaged lines end in one error.

    Overrides `JournalStorage._sync_with_backend`, through which every read goes: Optuna raises whatever an entry of
    another shape makes its code raise.

    Args:
        damaged: makes the error from what Optuna raised.
    """

    def __init__(self, backend: BaseJournalBackend, damaged: Callable[[Exception], Exception]) -> None:
        self.damaged = damaged
        super().__init__(backend)

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (AssertionError, MemoryError, *NOT_THE_VALUE) as error:
            raise self.damaged(error) from error


def filtered(
    study: optuna.Study, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner | None = None
) -> FilteredStudy:
    """A `FilteredStudy` on the storage of an existing study.

    Reads `Study._storage`: the public interface does not return the storage, which wraps the one that was given.
    """
    return FilteredStudy(study.study_name, study._storage, sampler, pruner)


def visible_trials(study: optuna.Study, states: Collection[TrialState]) -> list[FrozenTrial]:
    """The trials that a sampler sees, not to be changed.

    Calls `Study._get_trials`: under Hyperband, the public `get_trials` leaves out the trials of other brackets.
    """
    return study._get_trials(deepcopy=False, states=tuple(states))


def create_trial(study: optuna.Study) -> int:
    """Create a running trial without hyperparameters; returns its id in the storage.

    Reads `Study._storage` and `Study._study_id`: the public `ask` samples at once, and takes an enqueued trial first.
    """
    return storage_of(study).create_new_trial(study._study_id)


def start_waiting_trial(study: optuna.Study, number: int) -> int:
    """Turn an enqueued trial into a running one; returns its id in the storage.

    Reads `Study._storage`: the public `ask` chooses the enqueued trial itself.
    """
    trial_id = id_of(study, number)
    storage_of(study).set_trial_state_values(trial_id, TrialState.RUNNING)
    return trial_id


def stored_trial(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    """What the storage holds of an open trial.

    Reads `Trial._trial_id` and `Study._storage`: the public `get_trials` reads all trials to find one.
    """
    return storage_of(study).get_trial(trial._trial_id)


def stored_trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """What the storage holds of a trial; see `stored_trial`."""
    return storage_of(study).get_trial(id_of(study, number))


def id_of(study: optuna.Study, number: int) -> int:
    """The id in the storage of the trial with a number.

    Reads `Study._storage` and `Study._study_id`: no public method translates a number.
    """
    return storage_of(study).get_trial_id_from_study_id_trial_number(study._study_id, number)


def frozen_id(trial: FrozenTrial) -> int:
    """The id in the storage of a stored trial. Reads `FrozenTrial._trial_id`, which has no public name."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage of a study. Reads `Study._storage`, which has no public name."""
    return study._storage


def set_search_space(sampler: TPESampler, space: IntersectionSearchSpace) -> None:
    """Have a TPE sampler take the space that all trials share from `space`.

    Sets `TPESampler._search_space`: the constructor does not take one, and the sampler's own compares all trials.
    """
    sampler._search_space = space


def grid_points(sampler: GridSampler) -> tuple[Mapping[str, Sequence[Any]], list[dict[str, Any]]]:
    """The grid of a sampler, and the hyperparameters of each of its points in the order of their numbers.

    Reads `GridSampler._search_space`, `_param_names` and `_all_grids`: the order is shuffled by the sampler's seed and
    has no public name.
    """
    names = sampler._param_names
    return sampler._search_space, [dict(zip(names, values, strict=True)) for values in sampler._all_grids]


def system_attributes(study: optuna.Study, trial_id: int) -> Mapping[str, Any]:
    """The system attributes of a trial. Reads `Study._storage`: a trial's own property is deprecated."""
    return storage_of(study).get_trial_system_attrs(trial_id)


def set_grid_point(study: optuna.Study, trial_id: int, grid: Mapping[str, Sequence[Any]], point: int) -> None:
    """Note which point of a grid a trial is, as `GridSampler.before_trial` does.

    Reads `Study._storage`: only the storage sets system attributes.
    """
    storage_of(study).set_trial_system_attr(trial_id, GRID_SPACE, grid)
    storage_of(study).set_trial_system_attr(trial_id, GRID_POINT, point)
