"""Reports that were shown once and could not be processed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from sweep.controller.ports import Channel, ObservedAttempt, ObservedWorker
from sweep.controller.report_buffer import ReportBuffer
from tests.contracts.test_study import report
from trainer.contract import Report


def observed(number: int, *reports: Report) -> ObservedAttempt:
    return ObservedAttempt(number, "w0001", True, True, None, "", None, reports)


class Shows:
    """A channel that shows these trials in turn, the same lists each time that it is asked."""

    def __init__(self, *rounds: dict[int, list[ObservedAttempt]]) -> None:
        self.rounds = iter(rounds)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        return next(self.rounds), {}


def milestones(buffer: ReportBuffer, failing: int | None = None) -> dict[int, list[int]]:
    """What a round processes of each trial; nothing of the one that fails."""
    processed: dict[int, list[int]] = {}

    def handle(number: int, attempts: list[ObservedAttempt]) -> None:
        if number == failing:
            raise OSError("Stale file handle")
        processed[number] = [report.milestone for attempt in attempts for report in attempt.reports]

    attempts, _ = buffer.observe([], [])
    try:
        buffer.process(attempts, handle)
    except OSError:
        assert failing is not None
    return processed


def test_unprocessed_reports_come_again_before_new_ones() -> None:
    first, second, third = (report(number, 1.0) for number in (1, 2, 3))
    idle = [observed(1)]
    shown = Shows(
        {0: [observed(1, first)], 1: [observed(1, first)], 2: idle},
        {0: [observed(1)], 1: [observed(1, second), observed(2, third)], 2: idle},
        {0: [observed(1)], 1: [observed(1), observed(2)], 2: idle},
        {1: [observed(1), observed(2)]},
    )
    buffer = ReportBuffer(cast(Channel, shown))
    assert milestones(buffer, failing=1) == {0: [1]}
    assert milestones(buffer, failing=1) == {0: []}
    assert milestones(buffer) == {0: [], 1: [1, 2, 3], 2: []}
    assert milestones(buffer) == {1: []}


def test_what_a_channel_shows_is_not_changed_and_a_trial_that_is_not_observed_waits() -> None:
    first = [observed(1, report(1, 1.0))]
    again = {0: [observed(1)]}
    buffer = ReportBuffer(cast(Channel, Shows({0: first}, {}, again)))
    assert milestones(buffer, failing=0) == {}
    assert milestones(buffer) == {}
    assert milestones(buffer) == {0: [1]}
    assert again == {0: [observed(1)]}


def test_an_error_is_passed_on() -> None:
    buffer = ReportBuffer(cast(Channel, Shows({0: [observed(1)]})))
    attempts, _ = buffer.observe([], [])
    with pytest.raises(ZeroDivisionError):
        buffer.process(attempts, lambda number, attempts: 1 // number)
