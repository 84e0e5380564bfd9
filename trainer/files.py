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


def write_atomic(path: Path, text: str | bytes, durable: bool = True, root: Path | None = None) -> None:
    """Write a whole file. A reader sees the old one or the new one, also after a crash.

    Args:
        durable: also after a power cut; it costs milliseconds, too many for a file that is soon written again.
        root: a directory that must exist; missing directories are made below it only. None: all of them are made.

    Raises:
        OSError: the disk is full or the directory is not writable; the old file stays.
        FileNotFoundError: the root does not exist.
    """
    data = text.encode() if isinstance(text, str) else text
    if root is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        make_directory(path.parent, root)
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


def make_private_directory(path: Path) -> bool:
    """Make a directory that only its owner may use, whatever the umask is; False if it exists, which stays as it is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    path.chmod(0o700)
    return True


def make_directory(path: Path, root: Path) -> None:
    """Make a directory and those between it and `root`, which is never made.

    Raises:
        FileNotFoundError: the root does not exist.
    """
    if path == root:
        return
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        if root not in path.parent.parents and root != path.parent:
            raise
        make_directory(path.parent, root)
        path.mkdir(exist_ok=True)


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


def take_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock on a file, whose directory must exist; None if another process holds it.

    The lock ends when the file is closed here and in all processes that have inherited it, however they die. The file's
    content stays; see `write_lock`.
    """
    for _ in range(LOCK_TRIES):  # `held` takes the lock for a moment, which must not look like another holder
        file = path.open("a+")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_at(file, path):
                return file
        file.close()
        time.sleep(LOCK_PAUSE_SECONDS)
    return None


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
