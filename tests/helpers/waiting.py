"""Waits for something that another thread or process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

PAUSE_SECONDS = 0.02


def until(
    condition: Callable[[], object], process: subprocess.Popen[Any] | None = None, seconds: float = 900.0
) -> None:
    """Return as soon as a condition holds.

    Args:
        condition: is called again after 20 ms, or after as long as it took: it may be a command.
        process: whoever brings the condition about.
        seconds: a limit for a machine that is busy with other work, and no measure.

    Raises:
        AssertionError: the process ended before the condition held, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if condition():
            return
        assert process is None or process.poll() is None, f"{process.args!r} ended before it happened"
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(max(PAUSE_SECONDS, time.monotonic() - begun))
