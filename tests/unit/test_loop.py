"""What the controller makes of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from sweep.loop import Controller
from sweep.model import Limits, Mode, Ruling, Verdict
from sweep.ports import AttemptSight, Ports
from sweep.simulate import Silent
from tests.contracts.test_study import report
from trainer.contract import Outcome, OutcomeKind, Report, StopCause

PAUSE = Verdict(3, 1.0, "another step promises more", Ruling.PAUSE)


class Paused:
    """A study in which the trial is to pause whatever it reports."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def record(self, number: int, reports: Sequence[Report]) -> Verdict:
        self.heard += [one.milestone for one in reports]
        return PAUSE

    def lay_aside(self, number: int) -> None:
        pass


def sight(number: int, *reports: Report, outcome: Outcome | None = None) -> AttemptSight:
    return AttemptSight(number, "w0001", True, True, StopCause.PAUSED, PAUSE.reason, outcome, reports)


def test_what_a_later_attempt_reports_before_it_hears_of_the_pause_is_heard() -> None:
    """The verdict stands since its last report, and is given again for the attempt before it."""
    study = Paused()
    ports = SimpleNamespace(study=study, clock=SimpleNamespace(now=lambda: 0.0))
    controller = Controller(
        ports=cast(Ports, ports),
        limits=Limits(trials=1, workers=1),
        spec=cast(Any, None),
        listener=Silent(),
        mode=lambda: Mode.RUN,
        created=0.0,
        poll_seconds=1.0,
    )
    controller._known_stops |= {(0, 1), (0, 2)}
    paused = Outcome(OutcomeKind.STOPPED, PAUSE.reason, StopCause.PAUSED)
    facts = controller._trial(0, [sight(1, outcome=paused), sight(2, report(4, 0.9))])
    assert study.heard == [4]
    assert facts.verdict is PAUSE
