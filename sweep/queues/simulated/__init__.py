"""Simulated workers that replay recorded curves in simulated time.

Invariant: nothing heavy is imported before a table is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sweep.config.queues import Queue
from sweep.errors import ConfigError
from sweep.queues.backend import Backend, OpenQueue, Recording, SpecBuilder, unchanged
from sweep.queues.simulated.section import SimulatedQueue
from trainer.contract import TrialSpec

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.controller.ports import SearchStudy
    from sweep.model.facts import Job
    from sweep.model.identifiers import AttemptId
    from sweep.processes import PreforkServer
    from sweep.queues.simulated.tables import Table
    from sweep.queues.simulated.world import World
    from trainer.room import Room


class SimulatedBackend(Backend):
    """A queue whose workers exist in this process only."""

    section = SimulatedQueue

    def open(self, room: Room, settings: Settings, prefork: PreforkServer | None = None) -> OpenQueue:
        from sweep.queues.simulated.dispatcher import (
            ChargedStudy,
            SimulatedChannel,
            SimulatedClock,
            SimulatedDispatcher,
        )

        queue, world = _section(settings.queue), _world(room, settings)
        clock = SimulatedClock(world)

        def charged(study: SearchStudy) -> SearchStudy:
            return ChargedStudy(study, clock)

        channel = SimulatedChannel(world, queue.look_seconds)
        return OpenQueue(SimulatedDispatcher(world), channel, clock, study=charged if queue.charge else unchanged)

    def viewer(self, room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
        from sweep.queues.simulated.dispatcher import SimulatedDispatcher

        return SimulatedDispatcher(_world(room, settings)).poll

    def check(self, settings: Settings) -> None:
        from sweep.config.torchtune import has_key, value_at
        from sweep.queues.simulated.scores import refusal

        queue = _section(settings.queue)
        if queue.workers is None or queue.slots == "auto":
            raise ConfigError("queue=simulated needs numbers for queue.workers and queue.slots")
        table, base = _table(queue), settings.torchtune
        table.check(settings.space, {key: value_at(base, key) for key in table.grid if has_key(base, key)})
        for metric in settings.measured:
            if reason := refusal(metric, table):
                raise ConfigError(f"metric.{metric.name}: {reason}; take another metric, or another queue")
        if settings.metric == "val_loss" and not table.has_validation:
            raise ConfigError(f"objective.metric=val_loss: queue.table={queue.table} has no val_loss; set it to loss")

    def on_gpu(self, settings: Settings) -> bool:
        return False

    def recording(self, queue: Queue) -> Recording:
        table = _table(_section(queue))
        return Recording(table.milestones, table.trial_tokens)

    def spec_builder(self, settings: Settings) -> SpecBuilder:
        """Builds specifications whose configuration is flat: a value for each key of the table, and perhaps a seed."""
        from sweep.config.torchtune import value_at

        keys = _table(_section(settings.queue)).grid
        base = {key: value_at(settings.torchtune, key) for key in keys if key not in settings.space}
        tokens, every = settings.milestone_tokens, settings.trial.checkpoint_every

        def build(attempt: AttemptId, params: Mapping[str, Any], final_seed: int | None) -> TrialSpec:
            config = {**base, **params, **({} if final_seed is None else {"seed": final_seed})}
            return TrialSpec(settings.name, attempt.trial, attempt.attempt, attempt.worker, config, tokens, every)

        return build

    def seconds(self, room: Room) -> float:
        from sweep.queues.simulated.recorder import simulated_seconds

        return simulated_seconds(room)


def _section(queue: Queue) -> SimulatedQueue:
    assert isinstance(queue, SimulatedQueue)
    return queue


def _table(queue: SimulatedQueue) -> Table:
    from sweep.queues.simulated.tables import load_table

    return load_table(queue.table, queue.columns)


def _world(room: Room, settings: Settings) -> World:
    """The world of a room in this process."""
    from sweep.queues.simulated.recorder import world_of
    from sweep.queues.simulated.world import World

    queue = _section(settings.queue)
    return world_of(
        room,
        lambda: World(_table(queue), queue.simulation_model, int(queue.slots), queue.seed, queue.trials_per_worker),
    )


BACKEND = SimulatedBackend()
