"""Where the log lines of a process go, and what they look like.

    2026-11-30 10:56:28 INFO trial 3 began (attempt 1)

Invariants: the standard library only. Log lines go through the loggers of `sweep` and `trainer`, so that other
libraries keep their own levels. Before `configure` is called only warnings are shown.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
PACKAGES = ("sweep", "trainer")


def configure(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send the log lines of this program to a stream, standard output by default, each at once.

    A second call replaces the first. `level` is one of the standard library's: `logging.DEBUG`, `logging.INFO` or
    `logging.WARNING`.
    """
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
