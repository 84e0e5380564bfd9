"""Whether there is space for what a sweep writes, and what a waiting controller says of that.

Invariants: space is found out by writing, since a quota or reserved blocks show in no other way. Only errors that say
that no space is left count. What the controller says is written into a file that has its space already.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sweep.controller.ports import Clock
from sweep.errors import GiveUp
from trainer.room import OWN_FILE, Room, read_text
from trainer.space import is_no_space

PROBE_BYTES = 64 * 1024
# Between two probes while there is space, and at least and at most while there is none.
PROBE_SECONDS = 5.0
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 30.0
# After a worker found no space: how long nothing starts, at first and at most; and when the first delay holds again.
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, CALM_SECONDS = 5.0, 300.0, 900.0
NOTICE_BYTES = 512
# A sweep without space is given up after so long, as it would never end otherwise; nothing is lost by that.
LIMIT_SECONDS = 24 * 3600.0


def has_space(directory: Path) -> bool:
    """Whether some KiB can be written into a directory now."""
    probe = directory / f".space.{secrets.token_hex(8)}"  # a name that nobody can place a link at
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OWN_FILE, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not is_no_space(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True


def no_space_text(room: Room) -> str:
    """What is said while there is no space in a room."""
    return f"no space left in {room.root}"


def given_up_text(where: str, seconds: float) -> str:
    """What is said if there was no space for so long."""
    return f"{where}, for {seconds / 3600:.0f} hours; free some, then `sweep resume`"


@dataclass
class RoomDisk:
    """A `Disk` (see `ports`) under a room.

    Args:
        every: seconds between two probes while there is space.
        limit: seconds without space after which the sweep is given up.
        _next: when to probe again; until then `_text` holds.
        _since: when there was no space first; None: there is some.
        _failed_at, _delay: when a worker last found no space, and for how long nothing starts since.
    """

    room: Room
    clock: Clock
    every: float = PROBE_SECONDS
    limit: float = LIMIT_SECONDS
    _text: str = ""
    _next: float = float("-inf")
    _retry: float = FIRST_RETRY_SECONDS
    _failed_at: float = float("-inf")
    _delay: float = 0.0
    _reason: str = ""
    _since: float | None = None

    def no_space(self) -> str:
        now = self.clock.now()
        if now >= self._next:
            self._probe(now)
        self._check_limit(now)
        waits = now - self._failed_at < self._delay
        return self._text or (f"a worker had no space left: {self._reason}" if waits else "")

    def failed(self, reason: str) -> None:
        now = self.clock.now()
        calm = now - self._failed_at > CALM_SECONDS
        self._delay = FIRST_DELAY_SECONDS if calm else min(2 * self._delay, MAX_DELAY_SECONDS)
        self._failed_at, self._reason = now, reason
        self._next = now

    def _check_limit(self, now: float) -> None:
        """Note since when there has been no space.

        Raises:
            GiveUp: for too long.
        """
        if not self._text and now - self._failed_at > CALM_SECONDS:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since > self.limit:
            raise GiveUp(given_up_text(self._text or f"a worker had no space left: {self._reason}", self.limit))

    def _probe(self, now: float) -> None:
        if has_space(self.room.root):
            self._text, self._retry, self._next = "", FIRST_RETRY_SECONDS, now + self.every
        else:
            self._text, self._next = no_space_text(self.room), now + self._retry
            self._retry = min(2 * self._retry, MAX_RETRY_SECONDS)


@dataclass
class Notice:
    """The file in which a controller says what it waits for, so that other processes can show it.

    Its blocks are written when the controller starts, since on a full disk there would be none.
    """

    room: Room
    _said: str = field(default="", init=False)

    def __post_init__(self) -> None:
        with suppress(OSError):
            self._write("", os.O_CREAT | os.O_TRUNC)

    def say(self, text: str) -> None:
        """Say what the controller waits for; nothing if the text is empty."""
        if text != self._said:
            self._said = text
            with suppress(OSError):
                self._write(text)

    def _write(self, text: str, flags: int = 0) -> None:
        handle = os.open(notice_path(self.room), os.O_WRONLY | OWN_FILE | flags, 0o666)
        try:
            os.pwrite(handle, text.encode()[:NOTICE_BYTES].ljust(NOTICE_BYTES), 0)
            os.fsync(handle)
        finally:
            os.close(handle)


def notice_path(room: Room) -> Path:
    """The file of a room's `Notice`."""
    return room.root / "waits"


def read_notice(room: Room) -> str:
    """What a running controller waits for; empty if it waits for nothing but its workers."""
    return (read_text(notice_path(room)) or "").strip()
