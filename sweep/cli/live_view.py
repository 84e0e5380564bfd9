"""The live view of a controller in a terminal: tables, and below them the last log lines.

Invariant: while it is shown nothing else writes to the terminal; log lines become lines of the view.
"""

from __future__ import annotations

import logging
import os
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sweep.report.formatting import duration
from sweep.report.terminal import live_view
from sweep.wiring.backends import job_viewer
from sweep.wiring.rooms import load_settings
from trainer.logs import redirected
from trainer.room import Room

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from sweep.report.reader import SweepReader
    from sweep.search.study import OptunaStudy

REFRESH_SECONDS = 0.5
KEPT_LINES = 200


class LiveView(logging.Handler):
    """Draws the state of a sweep and its last log lines, at most twice a second unless there is a new line."""

    def __init__(self, live: Live, reader: SweepReader) -> None:
        super().__init__()
        self.live = live
        self.reader = reader
        self._began = time.monotonic()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._drawn_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line, with the time since the controller's start, and draw."""
        self._lines.append(f"[{duration(time.monotonic() - self._began)}] {record.getMessage()}")
        self._draw()

    def refresh(self) -> None:
        """Draw, if the last time is long enough ago."""
        if time.monotonic() - self._drawn_at >= REFRESH_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        self.live.update(live_view(self.reader.state(), list(self._lines), self.live.console.height), refresh=True)


@contextmanager
def shown(out: Console, room: Room, study: OptunaStudy) -> Iterator[LiveView]:
    """Show the live view of a sweep on a terminal while the block runs."""
    from rich.live import Live

    from sweep.report.reader import SweepReader

    settings = load_settings(room)
    reader = SweepReader(room, settings, study.frozen, job_viewer(room, settings))
    with _control_keys_unseen(), Live(console=out, auto_refresh=False, transient=True) as live:
        view = LiveView(live, reader)
        with redirected(view):
            yield view


@contextmanager
def _control_keys_unseen() -> Iterator[None]:
    """Keep the terminal from echoing `^C` while the block runs: it would shift the view by a line."""
    terminal = _own_terminal()
    if terminal is None:
        yield
        return
    try:
        before = termios.tcgetattr(terminal)
        flags = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
        termios.tcsetattr(terminal, termios.TCSANOW, flags)  # not after what is printed: nobody may read that now
    except termios.error:  # it was hung up
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _own_terminal() -> int | None:
    """Standard input, if it is a terminal with this process in its foreground: only that one may change its flags."""
    with suppress(OSError, ValueError):
        terminal = sys.stdin.fileno()
        if os.tcgetpgrp(terminal) == os.getpgrp():
            return terminal
    return None
