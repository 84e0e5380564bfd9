"""Where a running trial's numbers go.

Invariant: a reporter only receives; it never decides, and the recipe does not know it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from trainer.contract import Report, Step, encode
from trainer.room import AttemptDir, append_line


class Reporter(Protocol):
    """Receives a trial's steps and reports, in order."""

    def step(self, step: Step) -> None:
        """Take one optimizer step."""

    def report(self, report: Report) -> None:
        """Take one milestone's report."""

    def close(self) -> None:
        """Let go of files and connections; called once, however the attempt ended."""


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

    def close(self) -> None:
        self._files.close()


class NoReporter:
    """Receives and forgets."""

    def step(self, step: Step) -> None:
        pass

    def report(self, report: Report) -> None:
        pass

    def close(self) -> None:
        pass
