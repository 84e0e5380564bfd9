"""Which attempts run on which worker, and how many more trials each worker can take.

Invariant: a pure function of facts and limits; imports nothing that acts.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property

from sweep.model.facts import AttemptFacts, TrialFacts, View, WorkerFacts
from sweep.model.limits import Limits
from sweep.model.states import JobState
from trainer.contract import StopCause


class Occupancy:
    """Which attempts run on which worker in one view."""

    def __init__(self, view: View, limits: Limits) -> None:
        self._view, self._limits = view, limits

    @cached_property
    def live(self) -> list[WorkerFacts]:
        """Workers whose jobs are not gone, by place."""
        return sorted((w for w in self._view.workers if w.job is not JobState.GONE), key=lambda w: w.place)

    @cached_property
    def planned(self) -> set[str]:
        """Names of the workers whose jobs have not been submitted yet."""
        return {worker.name for worker in self.live if worker.job is JobState.PLANNED}

    @cached_property
    def _split(self) -> tuple[list[tuple[TrialFacts, AttemptFacts]], list[TrialFacts]]:
        running: list[tuple[TrialFacts, AttemptFacts]] = []
        idle: list[TrialFacts] = []
        live = {worker.name for worker in self.live}
        for trial in self._view.trials:
            unfinished = [(trial, a) for a in trial.attempts if a.outcome is None and a.worker in live]
            if unfinished:
                running += unfinished
            else:
                idle.append(trial)
        return running, idle

    @property
    def running(self) -> list[tuple[TrialFacts, AttemptFacts]]:
        """Every attempt that may be running, with its trial: it has no outcome, and its worker's job is not gone."""
        return self._split[0]

    @property
    def idle_trials(self) -> list[TrialFacts]:
        """Open trials of which no attempt can be running."""
        return self._split[1]

    @cached_property
    def _running_numbers(self) -> set[int]:
        return {trial.number for trial, _ in self.running}

    @cached_property
    def loads(self) -> Counter[str]:
        """By worker, how many attempts may be running on it."""
        return Counter(attempt.worker for _, attempt in self.running)

    @cached_property
    def oldest_stops(self) -> dict[str, float]:
        """By worker, the time since which one of its running attempts has been asked to stop."""
        oldest: dict[str, float] = {}
        for _, attempt in self.running:
            if attempt.stop_since is not None:
                oldest[attempt.worker] = min(attempt.stop_since, oldest.get(attempt.worker, math.inf))
        return oldest

    @cached_property
    def _preempted(self) -> set[str]:
        """Workers that are about to end, as one of their attempts says: whatever they are given now would be lost."""
        return {
            attempt.worker
            for trial in self._view.trials
            for attempt in trial.attempts
            if attempt.outcome and attempt.outcome.cause is StopCause.PREEMPTED
        }

    def is_running(self, trial: TrialFacts) -> bool:
        """Whether an attempt of a trial may be running."""
        return trial.number in self._running_numbers

    @cached_property
    def free_slots(self) -> dict[str, int]:
        """By worker, how many more trials it can take, now or once it is ready."""
        loads = self.loads
        return {worker.name: self._free_slots(worker, loads.get(worker.name, 0)) for worker in self.live}

    def _free_slots(self, worker: WorkerFacts, load: int) -> int:
        slots = (self._limits.slots if worker.slots is None else worker.slots) - load
        if slots <= 0 or worker.draining or worker.name in self._preempted:
            return 0
        quota = self._limits.trials_per_worker
        return slots if quota is None else max(0, min(slots, quota - worker.assigned))
