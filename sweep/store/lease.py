"""The lease of a room in an object store: it ensures that at most one controller acts, across machines.

A lease is one object that its holder renews again and again. It does the work of the room's file lock, which reaches
no further than one machine or file system.

Invariants: the holder's text is what was put last, and each put succeeds only on top of the text that its writer read
before, so of two controllers that try at once one wins. A reader judges a lease by its own clock: one that has not
changed for `grace` seconds is free. A holder that could not renew for two thirds of that time stops acting until it has
renewed; one that finds another holder's text never acts again.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sweep.errors import GiveUp, RetryLater
from trainer.clock import boot_seconds
from trainer.room import read_text, write_atomic
from trainer.store.layout import LEASE
from trainer.store.objects import ObjectStore, StoreError

RENEW_SECONDS = 20.0
GRACE_SECONDS = 60.0
# Between two reads by a process that waits for a lease's release.
AWAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LeaseText:
    """The content of the lease's object.

    Args:
        holder: where the controller runs, as text for a person.
        token: unique for each holder. A machine that finds its own token knows that no other controller has acted.
        counter: how often the lease was renewed.
        released: the holder has ended and released the lease.
    """

    holder: str
    token: str
    counter: int = 0
    released: bool = False

    def encode(self) -> bytes:
        """The object's bytes."""
        return json.dumps(asdict(self)).encode()


@dataclass
class Lease:
    """The lease of a room in a store, held from `acquire` to `release`.

    Args:
        holder: where this controller runs, as text for a person.
        record: a local file that keeps the token. The caller holds this machine's file lock of the room, so a lease
            with that token belongs to a process that has ended.
        renew: seconds between two renewals.
        grace: seconds without a change after which a lease is free.
        now, sleep: the local clock in seconds. It counts suspension, during which another may take the lease.
    """

    store: ObjectStore
    holder: str
    record: Path
    renew: float = RENEW_SECONDS
    grace: float = GRACE_SECONDS
    now: Callable[[], float] = boot_seconds
    sleep: Callable[[float], None] = time.sleep
    _text: LeaseText = field(init=False)
    _continued: bool = False
    _renewed_at: float = float("-inf")
    _taken_by: str = ""
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._text = LeaseText(self.holder, uuid.uuid4().hex)

    def acquire(self) -> bool:
        """Take the lease and start a thread that renews it.

        Returns whether no other controller has held it since the last one on this machine.

        Raises:
            RetryLater: another controller holds the lease.
            StoreError: the store does not answer; the call may be repeated.
        """
        raw = self._read()
        current = _decode(raw)
        began = self.now()
        if current is None or current.token != self._text.token:  # else an earlier call succeeded without an answer
            self._continued = current is not None and current.token == read_text(self.record)
            if current is not None and not current.released and not self._continued:
                raw = self._await_free(current)
            began = self.now()
            if not self.store.put_if(LEASE, self._text.encode(), raw):
                raise RetryLater("another controller has just taken this sweep")
        write_atomic(self.record, self._text.token)
        self._renewed_at = began
        self._thread = threading.Thread(target=self._renew_until_done, name="lease", daemon=True)
        self._thread.start()
        return self._continued

    def check(self) -> None:
        """Check that this controller may act; call it before each action.

        Raises:
            GiveUp: another controller has taken over.
            RetryLater: the store has not answered for long, so another controller may have taken over.
        """
        if self._taken_by:
            raise GiveUp(f"{self._taken_by} runs this sweep now; this controller leaves the sweep to it")
        if self.now() - self._renewed_at > self.grace * 2 / 3:
            raise RetryLater("the store has not answered for so long that another controller may have taken over")

    def release(self) -> None:
        """Release the lease for the next controller; if the store does not answer, that one waits for `grace`."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(self.grace)
        with self._lock:
            if self._thread is not None and not self._taken_by:
                with suppress(StoreError):
                    self.store.put_if(LEASE, replace(self._text, released=True).encode(), self._text.encode())

    def renew_once(self) -> None:
        """Put the lease with the next count on top of the last one, or note who has taken it.

        Raises:
            StoreError: the store does not answer.
        """
        with self._lock:
            following = replace(self._text, counter=self._text.counter + 1)
            began = self.now()
            if not self.store.put_if(LEASE, following.encode(), self._text.encode()):
                raw = self._read()
                if raw != following.encode():  # else an earlier try has succeeded without an answer
                    current = _decode(raw)
                    if current is None or current.token != self._text.token:
                        self._taken_by = current.holder if current else "another controller"
                        return
                    following = current
            self._text, self._renewed_at = following, began

    def _renew_until_done(self) -> None:
        while not self._done.wait(self.renew) and not self._taken_by:
            with suppress(StoreError):  # `check` measures how long the store has not answered
                self.renew_once()

    def _await_free(self, current: LeaseText) -> bytes | None:
        """Wait until this lease was released or has not changed for `grace`; returns what the object then holds.

        Raises:
            RetryLater: its holder has renewed it.
        """
        began = self.now()
        while True:
            self.sleep(min(self.renew / 2, self.grace))
            raw = self._read()
            text = _decode(raw)
            if text is None or text.released or (text == current and self.now() - began >= self.grace):
                return raw
            if text != current:
                raise RetryLater(
                    f"another controller runs this sweep already ({text.holder}); end it with `sweep stop`"
                )

    def _read(self) -> bytes | None:
        return self.store.get([LEASE]).get(LEASE)


def holder_of(store: ObjectStore, own: str | None = None) -> str:
    """Where the controller runs that holds the lease of this room, or that died without releasing it; else empty.

    Args:
        own: the token of this machine's last holder, if that has ended; its lease does not count.

    Raises:
        StoreError: the store does not answer.
    """
    current = _decode(store.get([LEASE]).get(LEASE))
    return "" if current is None or current.released or current.token == own else current.holder


def await_release(
    store: ObjectStore,
    grace: float = GRACE_SECONDS,
    now: Callable[[], float] = boot_seconds,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until the lease of this room is released; False if it has not changed for `grace`: its holder died.

    Raises:
        StoreError: the store does not answer.
    """
    last, since = None, now()
    while True:
        current = _decode(store.get([LEASE]).get(LEASE))
        if current is None or current.released:
            return True
        if current != last:
            last, since = current, now()
        elif now() - since >= grace:
            return False
        sleep(AWAIT_SECONDS)


def _decode(raw: bytes | None) -> LeaseText | None:
    """The lease in these bytes; None if there is no object, or it is no lease."""
    try:
        return None if raw is None else LeaseText(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        return None
