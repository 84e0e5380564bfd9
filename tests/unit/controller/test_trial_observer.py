"""The facts that are made of what a channel shows of a trial, and what the study is given on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from sweep.controller.first_seen import FirstSeen
from sweep.controller.ledger import NoLedger
from sweep.controller.ports import ObservedAttempt, PausingStudy, Study
from sweep.controller.trial_observer import TrialObserver
from sweep.model.facts import Verdict
from sweep.model.limits import Limits
from sweep.model.states import Ruling
from sweep.wiring.simulate import Silent
from tests.helpers.made_reports import report
from trainer.contract import Outcome, OutcomeKind, Report, StopCause

PAUSE = Verdict(3, 1.0, "another trial has a larger expected improvement", Ruling.PAUSE)


class Paused:
    """A study that pauses the trial whatever it reports."""

    def __init__(self) -> None:
        self.milestones: list[int] = []
        self.workers: set[str] = set()

    def record(self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True) -> Verdict:
        self.milestones += [report.milestone for report in reports]
        self.workers.add(worker)
        return PAUSE

    def objective(self, number: int) -> None:
        pass

    def suspend(self, number: int, trained: bool = False) -> None:
        pass


def observed(number: int, *reports: Report, outcome: Outcome | None = None) -> ObservedAttempt:
    return ObservedAttempt(number, "w0001", True, True, StopCause.PAUSED, PAUSE.reason, outcome, reports)


def observer(study: Paused, limits: Limits, *stopped: tuple[int, int]) -> TrialObserver:
    """One that has itself asked these attempts to stop."""
    observer = TrialObserver(cast(Study, study), cast(PausingStudy, study), Silent(), NoLedger(), limits, FirstSeen())
    for attempt in stopped:
        observer.stop_sent(*attempt)
    return observer


def test_reports_that_a_later_attempt_makes_before_it_sees_the_pause_reach_the_study() -> None:
    """The verdict stands since the attempt's last report, and is given again for the attempt before it."""
    study = Paused()
    paused = Outcome(OutcomeKind.STOPPED, PAUSE.reason, StopCause.PAUSED)
    trials = observer(study, Limits(trials=1, workers=1), (0, 1), (0, 2))
    facts = trials.facts(0, [observed(1, outcome=paused), observed(2, report(4, 0.9))])
    assert study.milestones == [4]
    assert facts.verdict is PAUSE


@pytest.mark.parametrize(("trials_per_worker", "named"), [(None, {"w0001"}), (1, {""})])
def test_the_study_learns_the_worker_only_if_that_goes_on_to_other_trials(
    trials_per_worker: int | None, named: set[str]
) -> None:
    study = Paused()
    observer(study, Limits(trials=1, trials_per_worker=trials_per_worker), (0, 1)).facts(
        0, [observed(1, report(1, 0.9))]
    )
    assert study.workers == named


def test_nothing_of_an_ended_trial_is_kept() -> None:
    paused = Outcome(OutcomeKind.STOPPED, PAUSE.reason, StopCause.PAUSED)
    trials = observer(Paused(), Limits(trials=1, workers=1), (0, 1), (0, 2))
    trials.facts(0, [observed(1, outcome=paused), observed(2, report(4, 0.9), outcome=paused)])
    assert trials.first_seen._values
    trials.end(0)
    assert not trials.first_seen._values
