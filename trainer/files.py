"""Reads, writes, appends to and locks files that several processes share.

Invariants: standard library only. A whole file appears by rename. An appended file is read up to its last complete
line, and a line that could not be written whole is cut off again before the next one. What is durable survives a power
cut together with its directory's entry, in the order in which it was written.
"""

from __future__ import annotations

import errno
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
# What a file system answers that does not sync directories.
NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


def write_atomic(path: Path, text: str | bytes, durable: bool = True) -> None:
    """Write a whole file. A reader sees the old one or the new one, also after a crash.

    Args:
        durable: also after a power cut; it costs milliseconds, too many for a file that is soon written again.

    Raises:
        OSError: the disk is full or the directory is not writable. The old file stays, or the new one is there and may
            not survive a power cut. The call may be repeated.
    """
    data = text.encode() if isinstance(text, str) else text
    new = _make_directory(path.parent)
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
    if durable:
        for directory in [path.parent, *new]:
            sync_directory(directory)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory survive a power cut, if its file system can do that.

    Raises:
        OSError: the disk is full, or fails.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Make a directory with everything in it survive a power cut.

    Raises:
        OSError: the disk is full, or fails.
    """
    for directory, _, names in os.walk(path):
        for name in names:
            with Path(directory, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(directory))
    sync_directory(path.parent)


def _make_directory(path: Path) -> list[Path]:
    """Make a directory with its parents; returns the directories that have a new entry by that."""
    new, missing = [], path
    while not missing.exists():
        missing = missing.parent
        new.append(missing)
    path.mkdir(parents=True, exist_ok=True)
    return new


def read_text(path: Path) -> str | None:
    """The text of a file; None if it does not exist. Bytes that are no UTF-8 are replaced."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
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
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n"):
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


class LineFile:
    """Appends lines to a file, as its one writer. Each line is whole in the file, or not at all.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        cut_torn_line(path)

    def append(self, line: str, durable: bool = False) -> None:
        """Append one line and hand it to the operating system, so that it survives if the writer is killed.

        Args:
            durable: also after a power cut.

        Raises:
            OSError: the disk is full, or fails. The file is as before, and the call may be repeated.
        """
        append_whole(self._handle, f"{line}\n".encode(), durable)

    def sync(self) -> None:
        """Make all lines survive a power cut.

        Raises:
            OSError: the disk is full, or fails.
        """
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def append_whole(handle: int, data: bytes, durable: bool) -> None:
    """Append data to an open file, all or nothing.

    Raises:
        OSError: the disk is full, or fails. The file is as before.
    """
    end = os.fstat(handle).st_size
    try:
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part
            left = left[os.write(handle, left) :]
        if durable:
            os.fsync(handle)
    except OSError:
        os.ftruncate(handle, end)
        raise


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
