"""How the server can be told to fail. A fault applies to requests whose operation's name its pattern matches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass
class Fault:
    """One kind of failure. `status` 0 means that the connection is dropped without an answer."""

    status: int | None = None  # None: answer as always, after the delay
    operation: str = "*"
    who: str = "*"
    count: int | None = None  # so many requests; None: until it is removed or its time is over
    until: float | None = None  # on the monotonic clock
    delay: float = 0.0
    retry_after: float | None = None
    acted: bool = False  # the request is carried out first: only its answer is lost
    hits: int = 0

    def wants(self, operation: str, who: str, now: float) -> bool:
        if self.until is not None and now >= self.until:
            return False
        if self.count is not None and self.hits >= self.count:
            return False
        return fnmatchcase(operation, self.operation) and fnmatchcase(who, self.who)

    @property
    def words(self) -> str:
        what = "slow" if self.status is None else "dropped" if self.status == 0 else str(self.status)
        return f"{what} after acting" if self.acted else what


@dataclass
class Faults:
    """The faults in force; the first one that matches a request is its fault."""

    some: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault, seconds: float | None = None) -> Fault:
        """From now on, for so many seconds where that is said."""
        if seconds is not None:
            fault.until = time.monotonic() + seconds
        with self.lock:
            self.some.append(fault)
        return fault

    def answer(self, status: int, operation: str = "*", *, seconds: float | None = None, **more: Any) -> Fault:
        """This HTTP status; `retry_after=` seconds adds the header. `count`, `acted`, `who`: see `Fault`."""
        return self.add(Fault(status, operation, **more), seconds)

    def drop(self, operation: str = "*", *, seconds: float | None = None, **more: Any) -> Fault:
        """The connection is closed without an answer."""
        return self.add(Fault(0, operation, **more), seconds)

    def slow(self, delay: float, operation: str = "*", *, seconds: float | None = None, **more: Any) -> Fault:
        """The true answer, `delay` seconds late."""
        return self.add(Fault(None, operation, delay=delay, **more), seconds)

    def remove(self, fault: Fault) -> None:
        with self.lock:
            self.some = [one for one in self.some if one is not fault]

    def clear(self) -> None:
        with self.lock:
            self.some.clear()

    @contextmanager
    def during(self, fault: Fault) -> Iterator[Fault]:
        self.add(fault)
        try:
            yield fault
        finally:
            self.remove(fault)

    def take(self, operation: str, who: str) -> Fault | None:
        """The fault of this request, counted."""
        with self.lock:
            now = time.monotonic()
            found = next((one for one in self.some if one.wants(operation, who, now)), None)
            if found is not None:
                found.hits += 1
            return found
