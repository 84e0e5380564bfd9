"""Workers as jobs of a W&B Launch queue.

Invariant: nothing heavy is imported before a queue is opened, and W&B is not asked for anything before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.queues.backend import Backend, NamedCheck, OpenQueue
from sweep.queues.launch.section import LaunchQueue

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.model.facts import Job
    from sweep.processes import PreforkServer
    from trainer.room import Room


class LaunchBackend(Backend):
    """A queue of W&B Launch, whose agents start the jobs wherever they run."""

    section = LaunchQueue

    def open(self, room: Room, settings: Settings, prefork: PreforkServer | None = None) -> OpenQueue:
        from sweep.queues.launch.channel import make_channel
        from sweep.queues.launch.dispatcher import make_dispatcher

        dispatcher = make_dispatcher(room, settings, self.on_gpu(settings))
        return OpenQueue(dispatcher, make_channel(room, dispatcher), ended=dispatcher.ended)

    def viewer(self, room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
        from sweep.queues.launch.dispatcher import make_dispatcher

        return make_dispatcher(room, settings, self.on_gpu(settings), reads=True).poll

    def check(self, settings: Settings) -> None:
        from sweep.queues.launch.checks import check_settings

        check_settings(settings)

    def freeze(self, settings: Settings) -> Settings:
        """The settings with the owner of the runs: the default of the key's owner may change, a sweep's may not."""
        from sweep.queues.launch.wandb_api import default_entity
        from sweep.tracking.runs import wandb_location

        if wandb_location(settings).entity:
            return settings
        return replace(settings, wandb=replace(settings.wandb, entity=default_entity()))

    def doctor(self, settings: Settings, rooms_dir: Path) -> Sequence[NamedCheck]:
        from sweep.queues.launch.doctor import launch_checks

        return launch_checks(settings)


BACKEND = LaunchBackend()
