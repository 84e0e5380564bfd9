"""Reads, writes, appends to and locks files that several processes share.

Invariants: standard library only. A whole file appears by rename. An appended file is read up to its last complete
line.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LOCK_TRIES = 10
LOCK_PAUSE_SECONDS = 0.05


def write_atomic(path: Path, text: str | bytes, durable: bool = True) -> None:
    """Write a whole file. A reader sees the old one or the new one, also after a crash.

    Args:
        durable: also after a power cut; it costs milliseconds, too many for a file that is soon written again.

    Raises:
        OSError: the disk is full or the directory is not writable; the old file stays.
    """
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str | None:
    """The text of a file; None if it does not exist."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_json(path: Path) -> Any:
    """The JSON value of a file; None if the file is absent or holds no JSON."""
    text = read_text(path)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


class Tail:
    """Returns each complete line of an appended file once.

    An incomplete last line, whose writer is writing or has died, is left for a later call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def lines(self, end: int | None = None) -> list[str]:
        """New complete lines. Lines that end behind byte `end` are never returned."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read() if end is None else file.read(max(0, end - self._offset))
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode(errors="replace").splitlines()


def cut_torn_line(path: Path) -> None:
    """Delete an incomplete last line that a crash left. Only the file's one writer may call it, before it appends."""
    if path.exists():
        data = path.read_bytes()
        complete = data.rfind(b"\n") + 1
        if complete < len(data):
            with path.open("r+b") as file:
                file.truncate(complete)


def append_line(file: IO[str], line: str) -> None:
    """Append one line and hand it to the operating system, so that it survives if the writer is killed."""
    file.write(line + "\n")
    file.flush()


@contextmanager
def hold(path: Path, text: str) -> Iterator[bool]:
    """Hold an exclusive lock on a file while the block runs; yields False if another process holds it.

    The lock ends with the process, however it dies.

    Args:
        text: becomes the file's content, and says who holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        for _ in range(LOCK_TRIES):  # `held` takes the lock for a moment, which must not look like another holder
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            yield False
            return
        file.truncate(0)
        append_line(file, text)
        yield True


def held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
