"""Where a running trial's numbers go.

Invariant: a reporter only receives; it never decides, and the recipe does not know it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.contract import Outcome, Report, Step, encode
from trainer.room import AttemptDir, append_line


class Reporter(Protocol):
    """Receives a trial's steps and reports, in order."""

    def step(self, step: Step) -> None:
        """Take one optimizer step."""

    def report(self, report: Report) -> None:
        """Take one milestone's report."""

    def adapter(self, path: Path) -> None:
        """Take the adapter as it is now: a directory that a later one may overwrite."""

    def close(self, outcome: Outcome | None) -> None:
        """Let go of files and connections; called once, with how the attempt ended where it did."""


class RoomReporter:
    """Appends to the attempt's files in the room.

    Raises:
        OSError: from any method, when the disk is full.
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
        pass  # it lies in the room

    def close(self, outcome: Outcome | None) -> None:
        self._files.close()


@dataclass(frozen=True, slots=True)
class Reporters:
    """Several reporters, told in order."""

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


class NoReporter:
    """Receives and forgets."""

    def step(self, step: Step) -> None:
        pass

    def report(self, report: Report) -> None:
        pass

    def adapter(self, path: Path) -> None:
        pass

    def close(self, outcome: Outcome | None) -> None:
        pass
