"""Receives the steps, the reports and the adapters of a running trial.

Invariant: a reporter only receives. It decides nothing, and the recipe does not know it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.contract import Outcome, Report, Step, encode
from trainer.room import AttemptDir, append_line


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

    Every method raises `OSError` if the disk is full.
    """

    def __init__(self, attempt: AttemptDir) -> None:
        self._files = ExitStack()
        self._steps = self._files.enter_context(attempt.steps.open("a"))
        self._reports = self._files.enter_context(attempt.reports.open("a"))

    def step(self, step: Step) -> None:
        append_line(self._steps, encode(step))

    def report(self, report: Report) -> None:
        append_line(self._reports, encode(report))

    def adapter(self, path: Path) -> None:
        pass  # it is in the room already

    def close(self, outcome: Outcome | None) -> None:
        self._files.close()


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
