"""How often a controller asks a store: it acts at once, and looks as seldom as that calls for.

Invariants: a `MeteredStore` counts every request as S3 does. The budget never delays an action; a caller that only
looks asks first how much is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.store.objects import ObjectStore

PAGE = 1000  # keys of a listing that one request answers, at S3 and GCS
# Of a trial or a worker, about: what W&B's client leaves behind included.
KEYS_EACH = 20
# For how long requests are saved up, and for how long what was asked too much is held against later looks.
SAVED_SECONDS = 15.0


@dataclass(slots=True)
class RequestBudget:
    """So many requests a minute, over any time that is longer than a quarter of one.

    Args:
        now: of this machine, for tests.
    """

    per_minute: float
    now: Callable[[], float] = time.monotonic
    spent: int = 0
    _left: float = field(init=False)
    _then: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left, self._then = self.most, self.now()

    def left(self) -> float:
        """How many requests may be made now; negative where too many have been."""
        with self._lock:
            return self._refill()

    def spend(self, requests: int) -> None:
        """Say that so many have been made."""
        with self._lock:
            self.spent += requests
            self._left = max(self._refill() - requests, -self.most)

    @property
    def most(self) -> float:
        """What can be saved up."""
        return self.per_minute * SAVED_SECONDS / 60

    def _refill(self) -> float:
        now = self.now()
        self._left = min(self.most, self._left + (now - self._then) * self.per_minute / 60)
        self._then = now
        return self._left


@dataclass(frozen=True, slots=True)
class MeteredStore:
    """An `ObjectStore` whose requests are taken from an allowance."""

    store: ObjectStore
    allowance: RequestBudget

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        self.allowance.spend(1)
        found = self.store.list(prefix, begins)
        self.allowance.spend(pages(len(found)) - 1)
        return found

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = [*keys]
        self.allowance.spend(len(wanted))
        return self.store.get(wanted)

    def put(self, key: str, data: bytes | Path) -> None:
        self.allowance.spend(1)
        self.store.put(key, data)

    def fetch(self, key: str, path: Path) -> bool:
        self.allowance.spend(1)
        return self.store.fetch(key, path)

    def copy(self, source: str, target: str) -> bool:
        self.allowance.spend(1)
        return self.store.copy(source, target)

    def delete(self, key: str) -> None:
        self.allowance.spend(1)
        self.store.delete(key)

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        self.allowance.spend(1)
        return self.store.put_if(key, data, expected)


def pages(keys: int) -> int:
    """How many requests it takes to list so many keys."""
    return max(1, -(-keys // PAGE))


def cover(names: Sequence[str]) -> list[str]:
    """How these names begin, so that few listings show them all with not too many others: names are counted up."""
    found = sorted(set(names))
    for cut in (1, 2):
        shorter = sorted({name[:-cut] for name in names})
        cost, before = len(shorter) * pages(10**cut * KEYS_EACH), len(found) * pages(10 ** (cut - 1) * KEYS_EACH)
        if cost >= before:
            break
        found = shorter
    return found
