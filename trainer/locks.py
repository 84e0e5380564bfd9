"""Locks on files, which say whether a process lives.

Invariants: standard library only. A lock ends with its holder, however that dies. Looking at a lock neither needs the
right to write its file nor changes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import IO

from trainer.files import OWN_FILE, append_line
from trainer.reading import Damage, open_file

LOCK_TRIES = 10
LOCK_PAUSE_SECONDS = 0.05


def take_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock on a file, whose directory must exist; None if another process holds it.

    The lock ends when the file is closed here and in all processes that have inherited it, however they die. The file's
    content stays; see `write_lock`.

    Raises:
        OSError: this user may not write the file, or something else stands in its place.
    """
    for _ in range(LOCK_TRIES):  # `lock_state` takes the lock for a moment, which must not look like another holder
        file = open_lock(path)
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_at(file, path):
                return file
        file.close()
        time.sleep(LOCK_PAUSE_SECONDS)
    return None


def open_lock(path: Path) -> IO[str]:
    """The file of a lock, open for its holder; it is made if it does not exist.

    Raises:
        OSError: this user may not write the file, or something else stands in its place.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | OWN_FILE, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "a+", encoding="utf-8")


def write_lock(file: IO[str], text: str) -> None:
    """Write who holds a lock into its file."""
    file.truncate(0)
    append_line(file, text)


def _is_file_at(file: IO[str], path: Path) -> bool:
    """Whether an open file still has this path. A lock on a deleted file excludes nobody."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


@contextmanager
def hold(path: Path, text: str) -> Iterator[bool]:
    """Hold an exclusive lock on a file while the block runs; yields False if another process holds it.

    Args:
        text: becomes the file's content, and says who holds the lock.
    """
    file = take_lock(path)
    try:
        if file is not None:
            write_lock(file, text)
        yield file is not None
    finally:
        if file is not None:
            file.close()


class LockState(StrEnum):
    """What a process that does not hold a lock sees of it."""

    FREE = "free"
    HELD = "held"
    UNSEEN = "cannot be seen"  # this user may not read the file, or its file system tells nothing of locks


def lock_state(path: Path) -> LockState:
    """Whether a living process holds the lock of this file, as far as this one may see.

    The file is opened for reading only, and the lock is asked for shared, so that the owner of the file is not needed,
    nor a file system that can be written to.
    """
    try:
        handle = open_file(path)
    except OSError:
        return LockState.UNSEEN
    if handle is None:
        return LockState.FREE
    if isinstance(handle, Damage):
        return LockState.UNSEEN
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockState.HELD
    except OSError:
        return LockState.UNSEEN
    finally:
        os.close(handle)
    return LockState.FREE


def held(path: Path) -> bool:
    """Whether a living process is seen to hold the lock of this file."""
    return lock_state(path) is LockState.HELD
