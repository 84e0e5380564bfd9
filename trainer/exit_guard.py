"""Ends a process that W&B's client would keep alive.

Invariant: no process, and no job with its GPU, waits longer than `END_SECONDS` for W&B's service when the interpreter
exits. wandb-core 0.31 never ends if it is asked to end while it gives a request up.
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

# What W&B has not received by then is in the room; the worker has waited for it before (`Tracker.patience`).
END_SECONDS = 60.0
SERVICE = "wandb-core"


@functools.cache
def limit_exit(seconds: float = END_SECONDS) -> None:
    """Kill this process's W&B services `seconds` after its main thread has ended, if they still run then.

    The client waits for its service in an `atexit` handler, during which only daemon threads still run.
    """
    threading.Thread(target=_end_services, args=(seconds,), daemon=True).start()


def _end_services(seconds: float) -> None:
    threading.main_thread().join()
    if "wandb" not in sys.modules:
        return
    time.sleep(seconds)
    for child in _children():
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip() == SERVICE:
                os.kill(child, signal.SIGKILL)


def _children() -> set[int]:
    """The child processes of all threads of this process; empty if the system has no /proc."""
    children: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            children |= {int(word) for word in path.read_text(encoding="utf-8").split()}
    return children
