"""Reads the files of a room, each of which another process, a crash or a person may have damaged.

Invariants: standard library only. A file that is absent, a file that is damaged and a file system that fails for a
moment are three things: None, a `Damage`, an `OSError`. Reading never waits, follows no loop and takes a bounded amount
of memory, whatever stands in the file's place.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from trainer.names import harmless

# The largest file that is read whole; those of a room that are, have some KiB.
MAX_BYTES = 256 * 2**20
# What the operating system answers if no file is there.
ABSENT = (errno.ENOENT, errno.ENOTDIR)
# What it answers for as long as nobody changes the file, or what stands in its place.
LASTING = (errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL)
# What reading a value raises if the text is not what the program wrote. JSON that is nested deeply ends in the last.
NOT_THE_VALUE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
REASON_CHARACTERS = 160

_KINDS = {
    list: "a list",
    dict: "an object",
    str: "a text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
}

T = TypeVar("T")


class DamageKind(StrEnum):
    """What is wrong with a file."""

    NO_FILE = "no file"  # a directory, a loop of symbolic links, a pipe: something else stands in its place
    UNREADABLE = "unreadable"  # this user may not read it
    TOO_LARGE = "too large"
    NO_TEXT = "no text"  # bytes that are no UTF-8, or NUL
    NO_VALUE = "no value"  # a text, but not the value that belongs there


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a file cannot be used.

    Args:
        reason: a clause for a person, such as "it is a directory".
        line: from 1, in a file of lines; None: it concerns the file as a whole.
    """

    path: Path
    kind: DamageKind
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}, line {self.line}" if self.line is not None else f"{self.path}"
        return harmless(f"{where}: {self.reason}")


def open_file(path: Path) -> int | Damage | None:
    """A regular file, open for reading, as its descriptor; its damage, or None if there is none.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe in its place would block
    except OSError as error:
        if error.errno in ABSENT:
            return None
        return _refused(path, error)
    except ValueError:  # a NUL in the name
        return None
    try:
        kind = os.fstat(handle).st_mode
    except OSError:
        os.close(handle)
        raise
    if stat.S_ISREG(kind):
        return handle
    os.close(handle)
    return Damage(path, DamageKind.NO_FILE, "it is a directory" if stat.S_ISDIR(kind) else "it is no regular file")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes | Damage | None:
    """The bytes of a file, its damage, or None if there is none.

    Args:
        limit: bytes of the largest file that is read.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    handle = open_file(path)
    if not isinstance(handle, int):
        return handle
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        if size > limit:
            return Damage(path, DamageKind.TOO_LARGE, f"it is larger than {limit // 2**20} MiB")
        return file.read(size)  # what is appended meanwhile is for the next reader


def read(path: Path, parse: Callable[[str], T]) -> T | Damage | None:
    """The value that a file holds, its damage, or None if there is no file.

    Args:
        parse: makes the value of the file's text; one of `NOT_THE_VALUE` says that the text is not that of a value.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    data = read_bytes(path)
    if not isinstance(data, bytes):
        return data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Damage(path, DamageKind.NO_TEXT, f"byte {error.start} is no UTF-8")
    if "\0" in text:
        return Damage(path, DamageKind.NO_TEXT, f"byte {data.index(0)} is NUL")
    try:
        return parse(text)
    except NOT_THE_VALUE as error:
        return Damage(path, DamageKind.NO_VALUE, reason_of(error))


def reason_of(error: BaseException) -> str:
    """Why a text is no value, in a clause."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON ({error.msg} at line {error.lineno}, column {error.colno})"
    return (" ".join(str(error).split()) or type(error).__name__)[:REASON_CHARACTERS]


def read_text(path: Path) -> str | None:
    """The text of a file; None if it does not exist or something else stands in its place.

    Bytes that are no UTF-8 are replaced.
    """
    data = read_bytes(path)
    return data.decode("utf-8", errors="replace") if isinstance(data, bytes) else None


def read_json(path: Path) -> Any:
    """The JSON value of a file; None if the file is absent or damaged."""
    return usable(read(path, json.loads))


def read_object(path: Path) -> dict[str, Any] | Damage | None:
    """The JSON object of a file, its damage, or None if there is no file."""
    return read(path, json_object)


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError, RecursionError: there is none.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f"it holds {kind_of(raw)} in place of an object")
    return raw


def kind_of(value: Any) -> str:
    """The JSON type of a value, with its article."""
    names = {
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null")


def usable(value: T | Damage | None) -> T | None:
    """The value that was read, or None: for a reader to whom a damaged file is an absent one."""
    return None if isinstance(value, Damage) else value


def _refused(path: Path, error: OSError) -> Damage:
    """The damage that an error of the operating system says; the error itself if it may pass.

    Raises:
        OSError: it may pass.
    """
    if error.errno not in LASTING:
        raise error
    reason = (error.strerror or "it cannot be opened").lower()
    denied = error.errno in (errno.EACCES, errno.EPERM)
    return Damage(path, DamageKind.UNREADABLE if denied else DamageKind.NO_FILE, reason)
