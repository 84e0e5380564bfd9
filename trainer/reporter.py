"""Receives the steps, the reports and the adapters of a running trial.

Invariant: a reporter only receives. It decides nothing, and the recipe does not know it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.contract import Outcome, Report, Step, encode
from trainer.room import AttemptDir, LineFile
from trainer.space import with_space

_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Receives the steps and reports of one attempt, in order."""

    def step(self, step: Step) -> None:
        """Receive one optimizer step."""

    def report(self, report: Report) -> None:
        """Receive the report of one milestone."""

    def adapter(self, path: Path) -> None:
        """Receive the present adapter, in a directory that the next one may overwrite."""

    def close(self, outcome: Outcome | None) -> None:
        """Close files and connections; called once, with the outcome, or None if the attempt has none."""


class RoomReporter:
    """Appends steps and reports to the attempt's files in the room.

    A report survives a power cut when `report` returns, so that it does so before any checkpoint that follows it. Steps
    do when the reporter was closed. If the disk is full, each method waits for space for a while.

    Raises:
        OSError: the disk stays full, or fails. So does each method but `close`.
    """

    def __init__(self, attempt: AttemptDir) -> None:
        self._steps = with_space(lambda: LineFile(attempt.steps), "the steps")
        self._reports = with_space(lambda: LineFile(attempt.reports), "the reports")

    def step(self, step: Step) -> None:
        with_space(lambda: self._steps.append(encode(step)), "a step")

    def report(self, report: Report) -> None:
        with_space(lambda: self._reports.append(encode(report), durable=True), "a report")

    def adapter(self, path: Path) -> None:
        pass  # it is in the room already

    def close(self, outcome: Outcome | None) -> None:
        try:
            self._steps.sync()
        except OSError as error:  # the trial's value does not depend on its steps
            _log.warning("the steps may not survive a power cut: %s", error)
        self._steps.close()
        self._reports.close()


@dataclass(frozen=True, slots=True)
class Reporters:
    """Several reporters, called in order."""

    each: tuple[Reporter, ...]

    def step(self, step: Step) -> None:
        for reporter in self.each:
            reporter.step(step)

    def report(self, report: Report) -> None:
        for reporter in self.each:
            reporter.report(report)

    def adapter(self, path: Path) -> None:
        for reporter in self.each:
            reporter.adapter(path)

    def close(self, outcome: Outcome | None) -> None:
        for reporter in self.each:
            reporter.close(outcome)
