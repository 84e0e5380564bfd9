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


def write_atomic(path: Path, text: str | bytes, durable: bool = True, root: Path | None = None) -> None:
    """Write a whole file. A reader sees the old one or the new one, also after a crash.

    Args:
        durable: also after a power cut; it costs milliseconds, too many for a file that is soon written again.
        root: a directory that must exist; missing directories are made below it only. None: all of them are made.

    Raises:
        OSError: the disk is full or the directory is not writable. The old file stays, or the new one is there and may
            not survive a power cut. The call may be repeated.
        FileNotFoundError: the root does not exist.
    """
    data = text.encode() if isinstance(text, str) else text
    new = make_directory(path.parent, root)
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


def make_private_directory(path: Path) -> bool:
    """Make a directory that only its owner may use, whatever the umask is; False if it exists, which stays as it is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    path.chmod(0o700)
    return True


def make_directory(path: Path, root: Path | None = None) -> list[Path]:
    """Make a directory and those between it and `root`, which is never made; without a root all of them.

    Returns:
        the directories that have a new entry by that, the deepest first.

    Raises:
        FileNotFoundError: the root does not exist.
    """
    if path == root:
        return []
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return []
    except FileNotFoundError:
        if root is not None and root not in path.parent.parents and root != path.parent:
            raise
        new = make_directory(path.parent, root)
        path.mkdir(exist_ok=True)
        return [path.parent, *new]
    return [path.parent]


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
