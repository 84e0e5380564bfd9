"""Whether a room is still that of the sweep that a process was started for.

A person may delete a room, and create another sweep under the same name, while workers and a controller of the old one
still run. Every creation of a room draws a token, which `sweep.json` holds. A process that serves the room was started
with that token, and ends when the room has another one.

Invariants: standard library only. A file system that fails for a moment never looks like a deleted
room. Sweeps that versions 0.1 and 0.2 created have no token, which counts as an empty one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.room import Damage, Room, open_file, read_json, write_atomic

# How long a room must be absent before it counts as deleted: a file system may be mounted anew.
GONE_SECONDS = 5.0
ABSENT_PAUSE_SECONDS = 0.1
TOKEN = "token"


class RoomLostError(SystemExit):
    """The room was deleted, or is another sweep's now; the process ends and writes nothing more.

    It is no `Exception`, so that nothing between the place where it is raised and the process's end handles it as a
    failure of a trial.
    """


@dataclass(slots=True)
class RoomPresence:
    """Watches the room of one process.

    Args:
        token: of the sweep that the process was started for; empty: a sweep of an old version.
        own: a file that the process needs besides, such as a worker's lock; None: there is none.
        now: a monotonic clock in seconds.
        absent: whether the last look found no room.
    """

    room: Room
    token: str
    own: Path | None = None
    now: Callable[[], float] = time.monotonic
    absent: bool = False
    _seen: os.stat_result | None = None
    _absent_since: float | None = None

    def problem(self) -> str:
        """Why the process must end, as a sentence; empty if it need not."""
        try:
            other = self._reads_other_token()
            self.absent = not self._exists()
        except FileNotFoundError:
            other, self.absent = False, bool(self.token) or not self._exists()
        except (OSError, ValueError, RecursionError):  # a shared file system fails for a moment
            return ""
        if other:
            return f"the room {self.room.root} was deleted and is another sweep's now"
        if not self.absent:
            self._absent_since = None
            return ""
        self._absent_since = self.now() if self._absent_since is None else self._absent_since
        if self.now() - self._absent_since < GONE_SECONDS:
            return ""
        deleted = self.own if self.own is not None and self.room.root.is_dir() else f"the room {self.room.root}"
        return f"{deleted} was deleted"

    def check(self) -> None:
        """Return if the room is there; wait while it is absent.

        Raises:
            RoomLostError: it was deleted, or is another sweep's; the text is a sentence.
        """
        while True:
            if problem := self.problem():
                raise RoomLostError(f"{problem}; this process ends and writes nothing more")
            if not self.absent:
                return
            time.sleep(ABSENT_PAUSE_SECONDS)

    def _reads_other_token(self) -> bool:
        """Whether `sweep.json` has another token. The file is opened each time, as a shared file system may answer a
        question for its attributes from memory, and read when it has changed."""
        handle = open_file(self.room.sweep)
        if handle is None:
            raise FileNotFoundError(self.room.sweep)
        if isinstance(handle, Damage):  # it proves nothing
            return False
        with os.fdopen(handle, encoding="utf-8") as file:
            stat = os.fstat(file.fileno())
            if self._seen is not None and _is_same(stat, self._seen):
                return False
            other = token_of(json.load(file)) != self.token
        self._seen = None if other else stat
        return other

    def _exists(self) -> bool:
        return self.room.root.is_dir() and (self.own is None or self.own.exists())


def room_token(room: Room) -> str:
    """The token of the sweep that a room is now; empty if it has none or cannot be read."""
    try:
        return token_of(read_json(room.sweep))
    except OSError:
        return ""


def write_token(room: Room, token: str) -> None:
    """Give a worker's own copy of a room the token of its sweep; nothing without one."""
    if token:
        write_atomic(room.sweep, json.dumps({TOKEN: token}), durable=False)


def token_of(raw: Any) -> str:
    """The token in the JSON value of a `sweep.json`; empty if it has none."""
    token = raw.get(TOKEN) if isinstance(raw, dict) else None
    return token if isinstance(token, str) else ""


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )
