"""What this program needs of an object store: a protocol, its errors, and retrying.

Invariants: an object appears whole or not at all. A key consists of names separated by `/` and never begins with one.
Every failure to reach the store is a `StoreError`, after which the same call may be repeated. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol


class StoreError(Exception):
    """The store is unreachable or failed; the same call may succeed later."""


class StoreRefusedError(StoreError):
    """The store refuses: the bucket, the credentials, the permission or the client's package is missing."""


class ObjectStore(Protocol):
    """Whole objects by key.

    Every method raises `StoreError` if the store is unreachable, and may then be repeated.
    """

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        """All keys below a prefix, each with a tag that changes with the object's content.

        Args:
            prefix: names joined by `/`, without a slash at the end.
            begins: only keys whose name behind the prefix begins with this.
        """

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The contents of these objects; keys without an object are left out."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object from bytes, or from a file, which must not change until the call returns."""

    def fetch(self, key: str, path: Path) -> bool:
        """Copy an object to a file, which appears whole; False if there is no such object."""

    def copy(self, source: str, target: str) -> bool:
        """Copy an object within the store; False if there is no such object."""

    def delete(self, key: str) -> None:
        """Remove an object if it exists."""

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Write an object only if it holds `expected` now (None: it does not exist); False if it does not."""


def retry(act: Callable[[], object], seconds: float, pause: float = 0.2) -> StoreError | None:
    """Repeat an act until it succeeds or the time is over; returns the last error if it never succeeded.

    Args:
        seconds: how long to go on trying.
        pause: seconds before the second try; each further pause is twice as long, 10 s at most.

    Raises:
        StoreRefusedError: the store refuses, which another try would not change.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            act()
            return None
        except StoreRefusedError:
            raise
        except StoreError as error:
            if time.monotonic() + pause > deadline:
                return error
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
