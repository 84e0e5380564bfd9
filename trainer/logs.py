"""Configures the log lines of a process: their format, their level and their stream.

    2026-11-30 10:56:28 INFO trial 3 attempt 1 starts

Invariants: the standard library only. A value of the environment that a configuration has named is never printed: the
reference to its variable is. Every module logs to `logging.getLogger(__name__)`, below `sweep` or `trainer`,
so that other libraries keep their own levels. A process that never calls `configure` prints warnings and errors only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from trainer.environment import mask

# DEBUG, INFO, WARNING or ERROR. A controller that is started with `--verbose` sets it; its workers and jobs inherit it.
LEVEL_ENV = "SWEEP_LOG_LEVEL"
FORMAT = "%(asctime)s %(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
PACKAGES = ("sweep", "trainer")


class _Formatter(logging.Formatter):
    """Masks the values of environment variables that a configuration refers to."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class _StandardOutput(logging.Handler):
    """Writes to the standard output of the moment: a forked worker's, or the one that a test captures."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except Exception:  # for example a full disk, which must not end a training
            self.handleError(record)


def configure(level: int | None = None, stream: TextIO | None = None) -> None:
    """Send the log lines of this program to a stream, each line at once. A second call replaces the first.

    Args:
        level: a level of the standard library, for example `logging.DEBUG`; None: `level_from_env()`.
        stream: None for standard output.
    """
    handler = _StandardOutput() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(FORMAT, DATE_FORMAT))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(level_from_env() if level is None else level)
        logger.propagate = False


def level_from_env() -> int:
    """The level that the environment variable `SWEEP_LOG_LEVEL` names; INFO if it is unset or names none."""
    return logging.getLevelNamesMapping().get(os.environ.get(LEVEL_ENV, "").upper(), logging.INFO)


def inherited_env() -> dict[str, str]:
    """What a job with an environment of its own needs, so that it logs at the level of this process."""
    return {LEVEL_ENV: os.environ[LEVEL_ENV]} if LEVEL_ENV in os.environ else {}


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
