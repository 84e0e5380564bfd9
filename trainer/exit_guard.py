"""The end of a process that spoke to W&B.

Invariant: nothing that W&B's client waits for at an interpreter's exit holds a process, and the job whose GPU it has,
for longer than `END_SECONDS`: wandb-core 0.31 never ends where it is told to while a request is being given up.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# What W&B has not got by then lies in the room: whoever waits for it has waited before (`Tracker.patience`).
END_SECONDS = 60.0
SERVICE = "wandb-core"


@functools.cache
def limit_exit(seconds: float = END_SECONDS) -> None:
    """Kill this process's services of W&B `seconds` after its main thread has ended, where it is still there then.

    The client waits for its service in an `atexit` handler, during which only daemon threads still run.
    """
    threading.Thread(target=_end_services, args=(seconds,), daemon=True).start()


def _end_services(seconds: float) -> None:
    threading.main_thread().join()
    if "wandb" not in sys.modules:
        return
    time.sleep(seconds)
    for child in _children():
        with suppress(OSError):  # it has ended by itself
            if Path(f"/proc/{child}/comm").read_text().strip() == SERVICE:
                os.kill(child, signal.SIGKILL)


def _children() -> set[int]:
    """Of all this process's threads; none where the system has no /proc."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found |= {int(word) for word in path.read_text().split()}
    return found
