"""The controller's lock where no file lock reaches: an object that its holder renews.

Invariants: whoever holds it put it last, and each put is made only on top of what its writer read before, so that of
two who try at once one wins. It is judged by the reader's own clock: a lease that has not changed for `grace` seconds
is free. A holder that could not renew it for two thirds of that acts no more until it has; one that finds another's
word in it never acts again.
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
from trainer.room import read_text, write_atomic
from trainer.store.layout import LEASE
from trainer.store.objects import ObjectStore, StoreError

RENEW_SECONDS = 20.0
GRACE_SECONDS = 60.0
# Between two looks of somebody who waits for a holder's end.
AWAIT_SECONDS = 2.0
# It goes on while a machine is suspended, during which another may take the lease; only Linux has such a clock.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds since some moment, those of a suspension included."""
    return time.clock_gettime(CLOCK)


@dataclass(frozen=True, slots=True)
class LeaseText:
    """What the object says.

    Args:
        holder: where the controller runs, for a person.
        token: one for each holder, so that whoever finds its own knows that nobody else has acted since.
        counter: renewals.
        released: its holder has let go.
    """

    holder: str
    token: str
    counter: int = 0
    released: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Lease:
    """Holds the lease of a room in a store, from `acquire` to `release`.

    Args:
        record: a file of this machine that remembers the token; whoever calls holds this machine's own lock of the
            room, so that a lease with this token belongs to a process that has ended.
        sleep, now: of this machine, for tests.
    """

    store: ObjectStore
    holder: str
    record: Path
    renew: float = RENEW_SECONDS
    grace: float = GRACE_SECONDS
    now: Callable[[], float] = clock
    sleep: Callable[[float], None] = time.sleep
    _mine: LeaseText = field(init=False)
    _continued: bool = False
    _renewed: float = float("-inf")
    _lost: str = ""
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._mine = LeaseText(self.holder, uuid.uuid4().hex)

    def acquire(self) -> bool:
        """Take the lease and begin to renew it; whether nobody else has held it since this machine did.

        Raises:
            RetryLater: another controller renews it. StoreError: the store does not answer; the call may be repeated.
        """
        before = self._raw()
        there = _decode(before)
        began = self.now()
        if there is None or there.token != self._mine.token:  # else an earlier call arrived, and its answer was lost
            self._continued = there is not None and there.token == read_text(self.record)
            if there is not None and not there.released and not self._continued:
                before = self._watch(there)
            began = self.now()
            if not self.store.put_if(LEASE, self._mine.encode(), before):
                raise RetryLater("another controller has just taken this sweep")
        write_atomic(self.record, self._mine.token)
        self._renewed = began
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self._continued

    def check(self) -> None:
        """Ask before acting.

        Raises:
            GiveUp: another controller has taken over. RetryLater: nobody knows for now, as the store does not answer.
        """
        if self._lost:
            raise GiveUp(f"{self._lost}; this one leaves the sweep to it")
        if self.now() - self._renewed > self.grace * 2 / 3:
            raise RetryLater("the store has not answered for so long that another controller may have taken over")

    def release(self) -> None:
        """Let go, so that the next controller need not wait; where the store does not answer it waits a little."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(self.grace)
        with self._lock:
            if self._thread is not None and not self._lost:
                with suppress(StoreError):
                    self.store.put_if(LEASE, replace(self._mine, released=True).encode(), self._mine.encode())

    def renew_once(self) -> None:
        """Put the next count, on top of our last one.

        Raises:
            StoreError: the store does not answer.
        """
        with self._lock:
            following = replace(self._mine, counter=self._mine.counter + 1)
            began = self.now()
            if not self.store.put_if(LEASE, following.encode(), self._mine.encode()):
                raw = self._raw()
                there = _decode(raw)
                if raw != following.encode():  # an earlier try may have arrived after all
                    who = there.holder if there else "somebody"
                    if there is None or there.token != self._mine.token:
                        self._lost = f"{who} runs this sweep now"
                        return
                    following = there
            self._mine, self._renewed = following, began

    def _keep(self) -> None:
        while not self._done.wait(self.renew) and not self._lost:
            try:
                self.renew_once()
            except StoreError:
                continue  # `check` counts the time

    def _watch(self, there: LeaseText) -> bytes | None:
        """Wait until this lease has not changed for its grace, or was released; what the object holds then."""
        began = self.now()
        while True:
            self.sleep(min(self.renew / 2, self.grace))
            raw = self._raw()
            found = _decode(raw)
            if found is None or found.released or (found == there and self.now() - began >= self.grace):
                return raw
            if found != there:
                raise RetryLater(
                    f"another controller runs this sweep already ({found.holder}); end it with `sweep stop`"
                )

    def _raw(self) -> bytes | None:
        return self.store.get([LEASE]).get(LEASE)


def holder_of(store: ObjectStore, own: str | None = None) -> str:
    """Who holds the lease of this room, or died without letting go; empty where nobody does.

    Args:
        own: the token of this machine's last holder, where that has ended: it does not count.

    Raises:
        StoreError: the store does not answer.
    """
    there = _decode(store.get([LEASE]).get(LEASE))
    return "" if there is None or there.released or there.token == own else there.holder


def await_release(
    store: ObjectStore,
    grace: float = GRACE_SECONDS,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until nobody holds the lease of this room; False where it has not changed for its grace: its holder died.

    Raises:
        StoreError: the store does not answer.
    """
    before, since = None, now()
    while True:
        there = _decode(store.get([LEASE]).get(LEASE))
        if there is None or there.released:
            return True
        if there != before:
            before, since = there, now()
        elif now() - since >= grace:
            return False
        sleep(AWAIT_SECONDS)


def _decode(raw: bytes | None) -> LeaseText | None:
    try:
        return None if raw is None else LeaseText(**json.loads(raw))
    except (ValueError, TypeError):
        return None
