"""A scheduler of attempts that is driven by hand."""

from __future__ import annotations

from typing import Any

from tests.conftest import embedded_config
from tests.helpers.attempts import Stops
from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import Metric, Outcome, TrialSpec, encode
from trainer.packed.memory import MemoryProbe, device_memory
from trainer.reporter import RoomReporter
from trainer.room import Room, write_atomic
from trainer.scheduler import Scheduler
from trainer.task import Task


class Hands:
    """Gives attempts to a scheduler, and keeps what became of them."""

    def __init__(self, room: Room, cache: Cache, slots: int, memory_probe: MemoryProbe = device_memory) -> None:
        self.room, self.cache = room, cache
        self.scheduler = Scheduler(slots, cache, lambda _: None, memory_probe)
        self.ended: dict[int, Outcome] = {}

    def give(
        self,
        trial: int,
        stop: Stops = lambda: None,
        attempt: int = 1,
        metrics: tuple[Metric, ...] = (),
        milestone_tokens: int = 180,
        **changes: Any,
    ) -> None:
        config = embedded_config(**changes)
        spec = TrialSpec("s", trial, attempt, "w0001", config, milestone_tokens, metrics=metrics)
        files = self.room.attempt(trial, attempt)
        write_atomic(files.spec, encode(spec))
        reporter = RoomReporter(files)

        def end(outcome: Outcome) -> None:
            assert trial not in self.ended, "told once"
            reporter.close(outcome)
            self.ended[trial] = outcome

        self.scheduler.add(Task(spec, lambda: Attempt(self.room, spec, self.cache, reporter, stop), end))

    def finish(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()
