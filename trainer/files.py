"""Writes and appends to files that several processes share, and reads appended ones.

Invariants: standard library only. A whole file appears by rename, from a name that nobody can guess. Nothing is written
through a symbolic link in a file's place, nor below a link that leads out of the room, if that is named as the root. An
appended file is read up to its last complete line, and a line that could not be written whole is cut off again before
the next one. What is durable survives a power cut together with its directory's entry, in the order in which it was
written.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainer.reading import MAX_BYTES, Damage, open_file

# Of a file that only its writer opens: nothing is followed, awaited or handed down.
OWN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
SCRATCH_BYTES = 8
STALE_SECONDS = 3600.0
# Names of half-written files, those of versions 0.1 and 0.2 too, which end in a process id.
_SCRATCH = re.compile(r"\..+\.([0-9a-f]{16}|[0-9]+)")
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
    if root is not None:
        check_inside(path.parent, root)
    new = make_directory(path.parent, root)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(SCRATCH_BYTES)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        try:
            scratch.replace(path)
        except IsADirectoryError:
            if root is None:
                raise
            set_aside(path)
            scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    if durable:
        for directory in [path.parent, *new]:
            sync_directory(directory)


def check_inside(directory: Path, root: Path) -> None:
    """Refuse to write into a directory that a symbolic link places outside of a room.

    Raises:
        OSError: it does.
    """
    real, real_root = os.path.realpath(directory), os.path.realpath(root)
    if real != real_root and not real.startswith(f"{real_root.rstrip(os.sep)}{os.sep}"):
        raise OSError(errno.ELOOP, "a symbolic link leads out of the room", str(directory))


def set_aside(path: Path) -> Path:
    """Rename what stands at a path to `NAME.damaged-1`, or the next free number; returns the new path.

    Raises:
        OSError: the directory cannot be written to.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    path.rename(aside)
    return aside


def stale_scratch(directory: Path, seconds: float = STALE_SECONDS) -> list[Path]:
    """The half-written files that a killed process left in a directory, this long ago at least."""
    oldest = time.time() - seconds
    with suppress(OSError), os.scandir(directory) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if _SCRATCH.fullmatch(entry.name)
            and entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_mtime <= oldest
        )
    return []


def remove_stale_scratch(directory: Path) -> None:
    """Remove `stale_scratch` from a directory, for the process that writes there."""
    for path in stale_scratch(directory):
        with suppress(OSError):
            path.unlink()


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


class Tail:
    """Returns each complete line of an appended file once.

    An incomplete last line, whose writer is writing or has died, is left for a later call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: Damage | None = None  # what stood in the file's place at the last call
        self._offset = 0

    def lines(self, end: int | None = None) -> list[str]:
        """New complete lines. Lines that end behind byte `end` are never returned.

        Raises:
            OSError: the file system fails, perhaps for a moment.
        """
        handle = open_file(self.path)
        self.damage = handle if isinstance(handle, Damage) else None
        if not isinstance(handle, int):
            return []
        with os.fdopen(handle, "rb") as file:
            size = os.fstat(handle).st_size
            file.seek(self._offset)
            data = file.read(max(0, min(MAX_BYTES, (size if end is None else min(size, end)) - self._offset)))
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode(errors="replace").splitlines()


def cut_torn_line(path: Path) -> None:
    """Delete an incomplete last line that a crash left. Only the file's one writer may call it, before it appends."""
    try:
        handle = os.open(path, os.O_RDWR | OWN_FILE)
    except FileNotFoundError:
        return
    with os.fdopen(handle, "r+b") as file:
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
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OWN_FILE, 0o666)
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
