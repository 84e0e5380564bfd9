"""The looks at the runs of a sweep, which the dispatcher and the channel of a Launch queue share.

Invariant: a look at all wanted runs is one call of `LaunchApi.runs`, and the next look follows at
least `seconds` later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweep.errors import RetryLater
from sweep.queues.launch.api import LaunchApi, ObservedRun

# Looks in a row that must miss a run that was seen before it counts as deleted.
MISSES = 2


@dataclass(slots=True)
class Runs:
    """The last look at the runs of a sweep, which dispatcher and channel share, so that one request serves both.

    Args:
        seconds: between two looks, at least.
        observed: the runs that the last look showed, by id.
        looks, failures: how many looks were answered, and how many were not.
    """

    api: LaunchApi
    seconds: float
    observed: dict[str, ObservedRun] = field(default_factory=dict)
    looks: int = 0
    failures: int = 0
    _asked: float = float("-inf")
    _wanted: dict[str, Sequence[str]] = field(default_factory=dict)
    _missed: dict[str, int] = field(default_factory=dict)

    def want(self, user: str, ids: Sequence[str]) -> None:
        """Ask for these runs from the next look on, in place of those that this user of the looks wanted before."""
        self._wanted[user] = ids

    def expect(self, run: str) -> None:
        """Say that this run exists, although no look has shown it: if looks miss it, it counts as deleted."""
        self._missed.setdefault(run, 0)

    def deleted(self, run: str) -> bool:
        """Whether a run existed and the last looks did not show it."""
        return self._missed.get(run, 0) >= MISSES

    def look(self, now: bool = False) -> bool:
        """Ask for all wanted runs if it is time to, or in any case if `now`; returns whether W&B was asked.

        Raises:
            RetryLater: W&B does not answer; `observed` stays as it was.
        """
        ids = list(dict.fromkeys(run for wanted in self._wanted.values() for run in wanted))
        if not ids or (not now and time.monotonic() - self._asked < self.seconds):
            return False
        try:
            observed = dict(self.api.runs(ids))
        except RetryLater:
            self.failures += 1
            raise
        finally:
            self._asked = time.monotonic()
        for run in ids:
            if run in observed:
                self._missed[run] = 0
            elif run in self._missed:
                self._missed[run] += 1
        self.observed = observed
        self.looks += 1
        return True
