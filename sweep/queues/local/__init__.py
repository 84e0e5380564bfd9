"""Workers as processes of this machine.

Invariant: nothing heavy is imported before a queue is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.queues.backend import Backend, OpenQueue
from sweep.queues.local.section import LocalQueue
from trainer.room import Room

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.model.facts import Job
    from sweep.processes import PreforkServer
    from sweep.queues.local.dispatcher import LocalDispatcher


class LocalBackend(Backend):
    """The queue of this machine: one worker per GPU, or per core if the recipe trains on the CPU."""

    section = LocalQueue

    def open(self, room: Room, settings: Settings, prefork: PreforkServer | None = None) -> OpenQueue:
        from sweep.controller.room_channel import RoomChannel

        return OpenQueue(self._dispatcher(room, settings, prefork), RoomChannel(room))

    def viewer(self, room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
        from sweep.queues.local.dispatcher import LocalDispatcher

        return LocalDispatcher(room, (), 1).poll

    def on_gpu(self, settings: Settings) -> bool:
        from sweep.queues.local.dispatcher import visible_gpus

        device = str(settings.torchtune.get("device"))
        if device.startswith("cuda") and not visible_gpus():
            raise ConfigError(
                f"device={device}, but this machine shows no GPU to queue=local; "
                "set recipe.overrides.device=cpu, or CUDA_VISIBLE_DEVICES"
            )
        return device.startswith("cuda")

    def worker_count(self, settings: Settings) -> int:
        from sweep.queues.local.dispatcher import cores, visible_gpus

        if settings.queue.workers is not None:
            return settings.queue.workers
        return len(visible_gpus()) if self.on_gpu(settings) else max(1, cores())

    def prefork(self, settings: Settings) -> PreforkServer:
        from sweep.processes import PreforkServer

        if not self.on_gpu(settings):
            return super().prefork(settings)
        dispatcher = self._dispatcher(Room(Path()), settings, None)
        return PreforkServer([dispatcher.own_env(place) for place in range(self.worker_count(settings))])

    def _dispatcher(self, room: Room, settings: Settings, prefork: PreforkServer | None) -> LocalDispatcher:
        from sweep.queues.local.dispatcher import LocalDispatcher, cores, visible_gpus

        queue = settings.queue
        return LocalDispatcher(
            room=room,
            gpus=visible_gpus() if self.on_gpu(settings) else (),
            threads=queue.threads or max(1, cores() // self.worker_count(settings)),
            trials=queue.trials_per_worker or 0,
            idle_seconds=queue.idle_seconds,
            slots=queue.worker_slots,
            env=queue.worker_env,
            prefork=prefork,
            token=settings.token,
        )


BACKEND = LocalBackend()
