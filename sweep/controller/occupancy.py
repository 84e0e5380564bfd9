"""Who runs where: what the facts say of workers and the attempts on them.

Invariant: a pure function of facts and limits; imports nothing that acts.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property

from sweep.model import AttemptFacts, JobState, Limits, TrialFacts, View, WorkerFacts
from trainer.contract import StopCause


class Occupancy:
    """Workers that are not gone, what each holds and how much more it takes, and the trials that none holds."""

    def __init__(self, view: View, limits: Limits) -> None:
        self._view, self._limits = view, limits

    @cached_property
    def live(self) -> list[WorkerFacts]:
        """Workers that are not gone, by their place."""
        return sorted((w for w in self._view.workers if w.job is not JobState.GONE), key=lambda w: w.place)

    @cached_property
    def _live_names(self) -> set[str]:
        return {worker.name for worker in self.live}

    @cached_property
    def planned_names(self) -> set[str]:
        """Workers that no queue has been told of yet."""
        return {worker.name for worker in self.live if worker.job is JobState.PLANNED}

    @cached_property
    def _split(self) -> tuple[list[tuple[TrialFacts, AttemptFacts]], list[TrialFacts]]:
        """Every attempt that may be running, and the trials that have none."""
        running, resting = [], []
        names = self._live_names
        for trial in self._view.trials:
            found = [(trial, one) for one in trial.attempts if one.outcome is None and one.worker in names]
            if found:
                running += found
            else:
                resting.append(trial)
        return running, resting

    @property
    def running(self) -> list[tuple[TrialFacts, AttemptFacts]]:
        """Every attempt that may be running."""
        return self._split[0]

    @property
    def resting(self) -> list[TrialFacts]:
        """Open trials without a running attempt."""
        return self._split[1]

    @cached_property
    def _busy_numbers(self) -> set[int]:
        return {trial.number for trial, _ in self.running}

    @cached_property
    def loads(self) -> Counter[str]:
        """How many attempts may be running on each worker."""
        return Counter(attempt.worker for _, attempt in self.running)

    @cached_property
    def oldest_stops(self) -> dict[str, float]:
        """Since when a worker has had a stop that it has not obeyed."""
        oldest: dict[str, float] = {}
        for _, attempt in self.running:
            if attempt.stop_since is not None:
                oldest[attempt.worker] = min(attempt.stop_since, oldest.get(attempt.worker, math.inf))
        return oldest

    @cached_property
    def _ending(self) -> set[str]:
        """Workers that were told to end from outside, as their trials say: what they were given now would be lost."""
        return {
            attempt.worker
            for trial in self._view.trials
            for attempt in trial.attempts
            if attempt.outcome and attempt.outcome.cause is StopCause.PREEMPTED
        }

    def alive(self, attempt: AttemptFacts) -> bool:
        """Whether an attempt may be running."""
        return attempt.outcome is None and attempt.worker in self._live_names

    def busy(self, trial: TrialFacts) -> bool:
        """Whether an attempt of a trial may be running."""
        return trial.number in self._busy_numbers

    @cached_property
    def rooms(self) -> dict[str, int]:
        """Trials that each worker can still take, now or once it is ready."""
        loads = self.loads
        return {worker.name: self._room_left(worker, loads.get(worker.name, 0)) for worker in self.live}

    def _room_left(self, worker: WorkerFacts, load: int) -> int:
        slots = (self._limits.slots if worker.slots is None else worker.slots) - load
        if slots <= 0 or worker.draining or worker.name in self._ending:
            return 0
        quota = self._limits.trials_per_worker
        return slots if quota is None else max(0, min(slots, quota - worker.assigned))
