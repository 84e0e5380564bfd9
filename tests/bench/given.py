"""Drives a scheduler as the worker does, for `packed_parity.py` and `packed_auto.py`.

Invariant: it uses the worker's own classes. Only the source of stops differs, and outcomes stay in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf

from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import Outcome, OutcomeKind, StopCause, TrialSpec, encode
from trainer.reporter import RoomReporter
from trainer.room import Room, write_atomic
from trainer.scheduler import Scheduler
from trainer.task import Task

NEVER = 10**9  # label tokens between milestones, so that only the last one is reported
Config = dict[str, Any]


class TimedScheduler(Scheduler):
    """Keeps how many seconds the attempts that began in the last step took to begin."""

    beginning: float = 0.0

    def _begin(self) -> None:
        began = time.perf_counter()
        super()._begin()
        self.beginning = time.perf_counter() - began


class ScheduledTrials:
    """A scheduler with its queue of trials; `stops` names the trials to stop, instead of a file."""

    def __init__(
        self, slots: int, configs: Sequence[Config], cache: Cache, room: Room, components: tuple[str, ...] = ()
    ) -> None:
        self.announced: list[int] = []
        self.scheduler = TimedScheduler(slots, cache, self.announced.append)
        self.queue = list(enumerate(configs))
        self.stops: set[int] = set()
        self.ended: dict[int, Outcome] = {}
        self._cache, self._room, self._components = cache, room, components

    def step(self) -> float:
        """Give the scheduler a trial for each free slot, and train a pass; returns the seconds of both."""
        began = time.perf_counter()
        while self.scheduler.free > 0 and self.queue:
            self._give(*self.queue.pop(0))
        self.scheduler.step()
        return time.perf_counter() - began

    def finish(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Train all trials to their ends; returns label tokens a second of a clock."""
        began = clock()
        while self.queue or self.scheduler.busy:
            self.step()
        kinds = {outcome.kind for outcome in self.ended.values()}
        assert kinds <= {OutcomeKind.COMPLETED, OutcomeKind.DIVERGED}, self.ended
        return sum(outcome.tokens for outcome in self.ended.values()) / (clock() - began)

    def _give(self, trial: int, cfg: Config) -> None:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(cfg), resolve=True)
        spec = TrialSpec("bench", trial, 1, "w0001", resolved, NEVER, checkpoint_every=0, components=self._components)
        files = self._room.attempt(trial, 1)
        write_atomic(files.spec, encode(spec), durable=False)
        reporter = RoomReporter(files)

        def stop() -> tuple[StopCause, str] | None:
            return (StopCause.PRUNED, "the benchmark stops it") if trial in self.stops else None

        def end(outcome: Outcome) -> None:
            reporter.close(outcome)
            self.ended[trial] = outcome

        self.scheduler.add(Task(spec, lambda: Attempt(self._room, spec, self._cache, reporter, stop), end))
