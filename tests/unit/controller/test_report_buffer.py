"""Reports that were shown once and could not be taken in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from sweep.controller.ports import Channel, ObservedAttempt, ObservedWorker
from sweep.controller.report_buffer import ReportBuffer
from tests.helpers.made_reports import report
from trainer.contract import Report


def sight(number: int, *reports: Report) -> ObservedAttempt:
    return ObservedAttempt(number, "w0001", True, True, None, "", None, reports)


class Shows:
    """A channel that shows these trials in turn, the same lists each time that it is asked."""

    def __init__(self, *looks: dict[int, list[ObservedAttempt]]) -> None:
        self.looks = iter(looks)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        return next(self.looks), {}


def milestones(looks: ReportBuffer, failing: int | None = None) -> dict[int, list[int]]:
    """What a round takes in of each trial; nothing of the one that fails."""
    found: dict[int, list[int]] = {}

    def take(number: int, sights: list[ObservedAttempt]) -> None:
        if number == failing:
            raise OSError("Stale file handle")
        found[number] = [one.milestone for shown in sights for one in shown.reports]

    attempts, _ = looks.look([], [])
    try:
        looks.take(attempts, take)
    except OSError:
        assert failing is not None
    return found


def test_what_was_not_taken_in_comes_again_before_what_is_new() -> None:
    one, two, three = (report(number, 1.0) for number in (1, 2, 3))
    idle = [sight(1)]
    shown = Shows(
        {0: [sight(1, one)], 1: [sight(1, one)], 2: idle},
        {0: [sight(1)], 1: [sight(1, two), sight(2, three)], 2: idle},
        {0: [sight(1)], 1: [sight(1), sight(2)], 2: idle},
        {1: [sight(1), sight(2)]},
    )
    looks = ReportBuffer(cast(Channel, shown))
    assert milestones(looks, failing=1) == {0: [1]}
    assert milestones(looks, failing=1) == {0: []}
    assert milestones(looks) == {0: [], 1: [1, 2, 3], 2: []}
    assert milestones(looks) == {1: []}


def test_what_a_channel_shows_is_not_changed_and_a_trial_that_is_not_asked_for_waits() -> None:
    first = [sight(1, report(1, 1.0))]
    again = {0: [sight(1)]}
    looks = ReportBuffer(cast(Channel, Shows({0: first}, {}, again)))
    assert milestones(looks, failing=0) == {}
    assert milestones(looks) == {}
    assert milestones(looks) == {0: [1]}
    assert again == {0: [sight(1)]}


def test_an_error_is_told() -> None:
    looks = ReportBuffer(cast(Channel, Shows({0: [sight(1)]})))
    attempts, _ = looks.look([], [])
    with pytest.raises(ZeroDivisionError):
        looks.take(attempts, lambda number, sights: 1 // number)
