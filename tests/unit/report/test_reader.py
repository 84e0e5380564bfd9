"""The status of a trial, from what the study and its last attempt say."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState, create_trial

from sweep.model.states import TrialStatus
from sweep.report.reader import final_status, open_status
from sweep.search.attributes import CANCELLED
from trainer.contract import Outcome, OutcomeKind, StopCause

COMPLETED = Outcome(OutcomeKind.COMPLETED)


def stopped(cause: StopCause) -> Outcome:
    return Outcome(OutcomeKind.STOPPED, cause=cause)


@pytest.mark.parametrize(
    ("outcome", "has_worker", "status"),
    [
        (None, True, TrialStatus.RUNNING),
        (None, False, TrialStatus.WAITING),
        (stopped(StopCause.PAUSED), True, TrialStatus.PAUSED),
        (stopped(StopCause.PAUSED), False, TrialStatus.PAUSED),
        (stopped(StopCause.PREEMPTED), True, TrialStatus.WAITING),
        (stopped(StopCause.INTERRUPTED), False, TrialStatus.WAITING),
        (stopped(StopCause.PRUNED), True, TrialStatus.ENDED),
        (COMPLETED, True, TrialStatus.ENDED),
        (Outcome(OutcomeKind.FAILED), False, TrialStatus.ENDED),
    ],
)
def test_the_status_of_an_open_trial(outcome: Outcome | None, has_worker: bool, status: TrialStatus) -> None:
    assert open_status(outcome, has_worker) is status


@pytest.mark.parametrize(
    ("state", "attributes", "status"),
    [
        (TrialState.COMPLETE, {}, TrialStatus.COMPLETE),
        (TrialState.PRUNED, {}, TrialStatus.PRUNED),
        (TrialState.FAIL, {}, TrialStatus.FAILED),
        (TrialState.FAIL, {CANCELLED: True}, TrialStatus.CANCELLED),
        (TrialState.RUNNING, {}, None),
    ],
)
def test_the_status_of_an_ended_trial(
    state: TrialState, attributes: dict[str, bool], status: TrialStatus | None
) -> None:
    value = 1.0 if state is TrialState.COMPLETE else None
    assert final_status(create_trial(state=state, value=value, user_attrs=attributes)) is status
