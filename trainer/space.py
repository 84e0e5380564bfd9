"""Recognizes a full disk or an exhausted quota, and waits for space.

Invariant: standard library only.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What libraries say that hide the error's number: safetensors and torch, a quota, SQLite.
PHRASES = ("No space left", "Disk quota exceeded", "disk is full")
SPACE_SECONDS = 60.0  # how long a trial in training waits for space on a full disk
RETRY_SECONDS = 1.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


def is_no_space(error: BaseException | None) -> bool:
    """Whether an error, or what it follows from, says that no space is left."""
    return any(
        (isinstance(link, OSError) and link.errno in NO_SPACE) or any(phrase in str(link) for phrase in PHRASES)
        for link in chain(error)
    )


def chain(error: BaseException | None) -> list[BaseException]:
    """An error with its causes, itself first."""
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def with_space(write: Callable[[], T], what: str) -> T:
    """Write, and repeat that for up to `SPACE_SECONDS` while no space is left.

    Args:
        write: may be repeated after it failed.
        what: is written, for the log.

    Raises:
        Exception: what `write` raises for another reason, or at last.
    """
    deadline = time.monotonic() + SPACE_SECONDS
    while True:
        try:
            return write()
        except Exception as error:
            if not is_no_space(error) or time.monotonic() > deadline:
                raise
            _log.warning("%s cannot be written yet, retrying: %s", what, error)
            time.sleep(RETRY_SECONDS)
