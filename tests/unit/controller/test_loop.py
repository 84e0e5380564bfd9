"""What the controller makes of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sweep.controller.loop import Controller
from sweep.controller.ports import ObservedAttempt, Ports
from sweep.model import Limits, Mode, Ruling, Verdict
from sweep.wiring.simulate import Silent
from tests.helpers.made_reports import report
from trainer.contract import Outcome, OutcomeKind, Report, StopCause

PAUSE = Verdict(3, 1.0, "another step promises more", Ruling.PAUSE)


class Paused:
    """A study in which the trial is to pause whatever it reports."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.workers: set[str] = set()

    def record(self, number: int, reports: Sequence[Report], worker: str = "", new: bool = True) -> Verdict:
        self.heard += [one.milestone for one in reports]
        self.workers.add(worker)
        return PAUSE

    def lay_aside(self, number: int) -> None:
        pass


def sight(number: int, *reports: Report, outcome: Outcome | None = None) -> ObservedAttempt:
    return ObservedAttempt(number, "w0001", True, True, StopCause.PAUSED, PAUSE.reason, outcome, reports)


def controlled(study: Paused, limits: Limits) -> Controller:
    ports = SimpleNamespace(study=study, channel=None, clock=SimpleNamespace(now=lambda: 0.0))
    return Controller(
        ports=cast(Ports, ports),
        limits=limits,
        spec=cast(Any, None),
        listener=Silent(),
        mode=lambda: Mode.RUN,
        created=0.0,
        poll_seconds=1.0,
    )


def test_what_a_later_attempt_reports_before_it_hears_of_the_pause_is_heard() -> None:
    """The verdict stands since its last report, and is given again for the attempt before it."""
    study = Paused()
    controller = controlled(study, Limits(trials=1, workers=1))
    controller._known_stops |= {(0, 1), (0, 2)}
    paused = Outcome(OutcomeKind.STOPPED, PAUSE.reason, StopCause.PAUSED)
    facts = controller._trial(0, [sight(1, outcome=paused), sight(2, report(4, 0.9))])
    assert study.heard == [4]
    assert facts.verdict is PAUSE


@pytest.mark.parametrize(("trials_per_worker", "named"), [(None, {"w0001"}), (1, {""})])
def test_how_fast_a_worker_is_counts_where_it_goes_on_to_other_trials(
    trials_per_worker: int | None, named: set[str]
) -> None:
    study = Paused()
    controller = controlled(study, Limits(trials=1, trials_per_worker=trials_per_worker))
    controller._known_stops.add((0, 1))
    controller._trial(0, [sight(1, report(1, 0.9))])
    assert study.workers == named
