"""Rebuilds the study of a sweep from what the files of its trials tell, behind what is left of its journal.

Invariants: a trial keeps its number. What the study knows already stays; only what it lacks is added. A trial is told
complete only with the value of a final report, and one whose files tell too little is left open, or failed if not even
its hyperparameters are known: nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.space import Space
from sweep.model.states import Ending
from sweep.search.attributes import CANCELLED, FINAL, IMPORTED, PROMOTED, REASON, SECONDS, TOKENS
from sweep.search.distributions import distribution, encode
from sweep.search.optuna_private import create_trial, id_of, start_waiting_trial, storage_of

LOST = "the study was rebuilt, and the files of the room say nothing of this trial"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended, as its files tell.

    Args:
        value: the objective in its final report, if it is complete.
        at: when, in seconds since the epoch; only the order counts.
    """

    ending: Ending
    reason: str = ""
    value: float | None = None
    cancelled: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What the files of a trial tell.

    Args:
        params: the hyperparameters; None if they are not known.
        values: the objective by milestone, as far as the study counts it: all of a trial that has ended, and of an open
            one up to its last pause.
        ended: how it ended; None: it is open, and a controller reads its files again.
        final: the number of the trial that it repeats, and the index of its seed; None if it is no final.
        promoted_at: the milestone of its last pause that a promotion ended.
    """

    number: int
    params: Mapping[str, Any] | None
    values: Mapping[int, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    ended: Ended | None = None
    final: tuple[int, int] | None = None
    promoted_at: int | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of the trials of a study.

    Args:
        kept: trials that the study knew the end of.
        told: trials that ended by what their files tell.
        left_open: trials that a controller continues or tells.
        lost: trials of which nothing is known.
    """

    kept: Sequence[int] = ()
    told: Sequence[int] = ()
    left_open: Sequence[int] = ()
    lost: Sequence[int] = ()


def rebuild(
    study: optuna.Study,
    space: Space,
    records: Sequence[TrialRecord],
    enqueued: Sequence[Mapping[str, Any]] = (),
    imports: bool = False,
) -> Rebuilt:
    """Add to a study what the files of its trials tell.

    Args:
        records: of all trials that have files.
        enqueued: hyperparameters with which the sweep began, the first trials.
        imports: the sweep began with trials of others, which have no files here.
    """
    by_number = {record.number: record for record in records}
    before = study.get_trials(deepcopy=False)
    first = min(by_number, default=0)
    for number in range(len(before), max(by_number, default=-1) + 1):
        if number not in by_number and number < len(enqueued):
            params = enqueued[number]
            study.enqueue_trial({key: encode(space[key].domain, value) for key, value in params.items()})
        elif number not in by_number and imports and number < first:
            _lose(study, create_trial(study), {IMPORTED: f"lost:{number}"})
        else:
            create_trial(study)
    trials = study.get_trials(deepcopy=False)
    kept = [trial.number for trial in trials[: len(before)] if trial.state.is_finished()]
    open_trials = [
        t for t in trials if not t.state.is_finished() and (t.number in by_number or t.number >= len(before))
    ]
    lost, open_records = [], []
    for trial in open_trials:
        record = by_number.get(trial.number)
        if record is None and trial.state is TrialState.WAITING:
            continue
        if record is None or (record.params is None and not trial.params):
            _lose(study, id_of(study, trial.number), {REASON: LOST})
            lost.append(trial.number)
            continue
        _complete(study, space, trial, record)
        open_records.append(record)
    ended = sorted((r for r in open_records if r.ended is not None), key=lambda r: (r.ended.at, r.number))  # type: ignore[union-attr]
    for record in ended:
        _tell(study, record)
    told = sorted(record.number for record in ended)
    left = [record.number for record in open_records if record.ended is None]
    return Rebuilt(kept, told, left, lost)


def _complete(study: optuna.Study, space: Space, trial: FrozenTrial, record: TrialRecord) -> None:
    """Give a trial what it lacks of its record, without its end."""
    storage, trial_id = storage_of(study), id_of(study, trial.number)
    if trial.state is TrialState.WAITING:
        start_waiting_trial(study, trial.number)
    for key, value in (record.params or {}).items():
        if key not in trial.params:
            domain = space[key].domain
            stored = distribution(domain)
            storage.set_trial_param(trial_id, key, stored.to_internal_repr(encode(domain, value)), stored)
    for milestone, value in sorted(record.values.items()):
        if milestone not in trial.intermediate_values and math.isfinite(value):
            storage.set_trial_intermediate_value(trial_id, milestone, value)
    final = None if record.final is None else list(record.final)
    for key, item in ((FINAL, final), (PROMOTED, record.promoted_at)):
        if item is not None and key not in trial.user_attrs:
            storage.set_trial_user_attr(trial_id, key, item)


def _tell(study: optuna.Study, record: TrialRecord) -> None:
    """Tell how a trial ended, as the controller does."""
    storage, trial_id, ended = storage_of(study), id_of(study, record.number), record.ended
    assert ended is not None
    attributes = {
        REASON: ended.reason,
        CANCELLED: ended.cancelled,
        TOKENS: record.tokens,
        SECONDS: record.seconds,
    }
    for key, value in attributes.items():
        if value:
            storage.set_trial_user_attr(trial_id, key, value)
    values = [ended.value] if ended.ending is Ending.COMPLETE and ended.value is not None else _last(record)
    storage.set_trial_state_values(trial_id, TrialState[ended.ending.value], values)


def _last(record: TrialRecord) -> list[float] | None:
    """The value of a pruned trial, as Optuna stores it: the last that was reported."""
    assert record.ended is not None
    if record.ended.ending is not Ending.PRUNED or not record.values:
        return None
    return [record.values[max(record.values)]]


def _lose(study: optuna.Study, trial_id: int, attributes: Mapping[str, Any]) -> None:
    storage = storage_of(study)
    for key, value in attributes.items():
        storage.set_trial_user_attr(trial_id, key, value)
    storage.set_trial_state_values(trial_id, TrialState.FAIL, None)
