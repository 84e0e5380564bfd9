"""Runs a program in a process group of its own, and ends the whole group with the process that started it.

    python supervisor.py PARENT SECONDS PROGRAM [WORD ...]

It ends the group with SIGTERM, and after SECONDS with SIGKILL: when it receives SIGTERM itself, when the process PARENT
has ended, however that died, and when the program has ended and left processes behind. Its exit code is the program's.

Invariants: standard library only; it is run as a file, so that nothing of this project is imported. It has a session of
its own, so that a signal to its parent's group does not reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

POLL_SECONDS = 0.05
CANNOT_START = 126


def main(parent: int, seconds: float, command: Sequence[str]) -> int:
    """Run a program to its end; returns its exit code, negative for a signal, as `subprocess` does."""
    told = []  # that SIGTERM has arrived
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return CANNOT_START
    while child.poll() is None and not told and os.getppid() == parent:
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
    _end_group(child, seconds)
    return child.wait()


def _end_group(child: subprocess.Popen[bytes], seconds: float) -> None:
    """End every process of the group that the child leads; nothing happens if it has none left."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            child.poll()  # a zombie would count as a process of the group
            os.killpg(child.pid, 0)
            time.sleep(POLL_SECONDS)
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    if code < 0:  # end as the program did
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
