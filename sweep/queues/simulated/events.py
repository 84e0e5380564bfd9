"""What happens in a simulated world, as values, and the order in which it happens.

Invariant: events of the same time happen in the order in which they were scheduled.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from sweep.queues.simulated.state import SimulatedAttempt, SimulatedWorker
from trainer.contract import StopCause


@dataclass(frozen=True, slots=True)
class JobStarts:
    """A job has waited in the queue and starts."""

    worker: SimulatedWorker


@dataclass(frozen=True, slots=True)
class WorkerGetsReady:
    """A worker has started up and takes attempts."""

    worker: SimulatedWorker


@dataclass(frozen=True, slots=True)
class WorkerLeaves:
    """A worker that drains ends, unless it has been given an attempt meanwhile."""

    worker: SimulatedWorker


@dataclass(frozen=True, slots=True)
class AttemptStops:
    """A running attempt obeys a stop."""

    attempt: SimulatedAttempt
    cause: StopCause
    reason: str


@dataclass(frozen=True, slots=True)
class MilestoneEnds:
    """An attempt reports the milestone that it began at this turn."""

    attempt: SimulatedAttempt
    turn: int


@dataclass(frozen=True, slots=True)
class WorkerEnds:
    """A worker is lost or preempted while the attempt trains the milestone that it began at this turn."""

    attempt: SimulatedAttempt
    turn: int


Event = JobStarts | WorkerGetsReady | WorkerLeaves | AttemptStops | MilestoneEnds | WorkerEnds


class Timeline:
    """The clock of a world, in seconds from 0, and the events that are scheduled on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._scheduled = 0

    @property
    def next_time(self) -> float:
        """The time of the next event; infinity if there is none."""
        return self._events[0][0] if self._events else math.inf

    def schedule(self, seconds: float, event: Event) -> None:
        """Let an event happen this many seconds from now."""
        self._scheduled += 1
        heapq.heappush(self._events, (self.now + seconds, self._scheduled, event))

    def pop(self, until: float) -> Event | None:
        """The next event up to this time, with the clock set to its time.

        If there is none, None, with the clock set to `until`, unless it is later already.
        """
        if self._events and self.next_time <= until:
            self.now, _, event = heapq.heappop(self._events)
            return event
        self.now = max(self.now, until)
        return None
