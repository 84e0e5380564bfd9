"""Where the log lines of a process go, and what they look like.

    2026-11-30 10:56:28 INFO trial 3 began (attempt 1)

Invariants: the standard library only. Log lines go through the loggers of `sweep` and `trainer`, so that other
libraries keep their own levels; nothing is logged before `configure` is called but warnings. The variable
`SWEEP_LOG_LEVEL` holds the level: a controller that is started with `--verbose` sets it, and its workers and jobs
inherit it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
PACKAGES = ("sweep", "trainer")
LEVEL_VARIABLE = "SWEEP_LOG_LEVEL"


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Writes to whatever standard output is when a line is logged."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def configure(level: int | None = None, stream: TextIO | None = None) -> None:
    """Send the log lines of this program to a stream, standard output by default, each at once.

    A second call takes the place of the first. `level` is one of the standard library's: `logging.DEBUG`,
    `logging.INFO`, `logging.WARNING`; None: the level that `SWEEP_LOG_LEVEL` names, INFO by default.
    """
    if level is None:
        level = logging.getLevelNamesMapping().get(os.environ.get(LEVEL_VARIABLE, ""), logging.INFO)
    handler = logging.StreamHandler(stream) if stream else _StandardOutput()
    handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


@contextmanager
def redirected(handler: logging.Handler) -> Iterator[None]:
    """Send the log lines of this program to this handler alone while the block runs."""
    loggers = [logging.getLogger(package) for package in PACKAGES]
    before = [logger.handlers[:] for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
