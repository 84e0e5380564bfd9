"""Limits how many requests a controller makes to an object store.

Actions are never delayed, but their requests are counted. Observing is what waits until requests are left.

Invariant: a `MeteredStore` counts every request as S3 bills it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.clock import boot_seconds
from trainer.store.objects import ObjectStore

PAGE_KEYS = 1000  # keys of a listing that S3 and GCS return for one request
# About how many objects a trial or a worker has, those that W&B's client leaves behind included.
KEYS_PER_DIRECTORY = 20
# Requests are saved up for this long, and requests beyond the limit delay later ones for at most this long.
SAVED_SECONDS = 15.0


@dataclass(slots=True)
class RequestBudget:
    """A token bucket of requests; may be used by several threads.

    Args:
        now: the local clock in seconds, time of suspension included.
        spent: requests made so far.
    """

    per_minute: float
    now: Callable[[], float] = boot_seconds
    spent: int = 0
    _left: float = field(init=False)
    _refilled_at: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left, self._refilled_at = self.capacity, self.now()

    def left(self) -> float:
        """How many requests may be made now; negative if too many were made."""
        with self._lock:
            return self._refill()

    def spend(self, requests: int) -> None:
        """Count requests that are made now, even if fewer are left."""
        with self._lock:
            self.spent += requests
            self._left = max(self._refill() - requests, -self.capacity)

    @property
    def capacity(self) -> float:
        """How many requests can be saved up."""
        return self.per_minute * SAVED_SECONDS / 60

    def _refill(self) -> float:
        now = self.now()
        self._left = min(self.capacity, self._left + (now - self._refilled_at) * self.per_minute / 60)
        self._refilled_at = now
        return self._left


@dataclass(frozen=True, slots=True)
class MeteredStore:
    """An `ObjectStore` whose requests are counted in a budget."""

    store: ObjectStore
    budget: RequestBudget

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        self.budget.spend(1)
        listing = self.store.list(prefix, begins)
        self.budget.spend(pages(len(listing)) - 1)
        return listing

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        keys = [*keys]
        self.budget.spend(len(keys))
        return self.store.get(keys)

    def put(self, key: str, data: bytes | Path) -> None:
        self.budget.spend(1)
        self.store.put(key, data)

    def fetch(self, key: str, path: Path) -> bool:
        self.budget.spend(1)
        return self.store.fetch(key, path)

    def copy(self, source: str, target: str) -> bool:
        self.budget.spend(1)
        return self.store.copy(source, target)

    def delete(self, key: str) -> None:
        self.budget.spend(1)
        self.store.delete(key)

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        self.budget.spend(1)
        return self.store.put_if(key, data, expected)


def pages(keys: int) -> int:
    """How many requests it takes to list this many keys."""
    return max(1, -(-keys // PAGE_KEYS))


def common_prefixes(names: Sequence[str]) -> list[str]:
    """Prefixes that cover all these names, chosen so that listing them takes few requests.

    Names end in consecutive numbers, so a prefix that is one digit shorter covers up to ten names.
    """
    prefixes = sorted(set(names))
    for cut in (1, 2):
        shorter = sorted({name[:-cut] for name in names})
        cost = len(shorter) * pages(10**cut * KEYS_PER_DIRECTORY)
        if cost >= len(prefixes) * pages(10 ** (cut - 1) * KEYS_PER_DIRECTORY):
            break
        prefixes = shorter
    return prefixes
