"""The queue of a sweep, reached from its settings.

Invariant: nothing here asks which kind a queue is; the `Backend` of the kind answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sweep.config.settings import Settings
from sweep.model.facts import Job
from sweep.queues import Backend, backend
from sweep.wiring.rooms import whereabouts
from trainer.room import Room

if TYPE_CHECKING:
    from sweep.controller.ports import Channel, Dispatcher
    from sweep.processes import PreforkServer
    from sweep.queues.backend import OpenQueue


def backend_of(settings: Settings) -> Backend:
    """The implementation of the sweep's kind of queue."""
    return backend(settings.queue.kind)


def worker_count(settings: Settings) -> int:
    """How many workers run at once; if the configuration leaves it open, what this machine has room for."""
    return backend_of(settings).worker_count(settings)


def on_gpu(settings: Settings) -> bool:
    """Whether the recipe trains on CUDA.

    Raises:
        ConfigError: it does, and the queue's machines have no GPU.
    """
    return backend_of(settings).on_gpu(settings)


def make_prefork(settings: Settings) -> PreforkServer:
    """Processes that import torch while the data are counted. None is started before its first use."""
    return backend_of(settings).prefork(settings)


def make_dispatcher(room: Room, settings: Settings, prefork: PreforkServer | None = None) -> Dispatcher:
    """The dispatcher of the configured queue; without a prefork server each worker imports torch by itself."""
    return backend_of(settings).open(room, settings, prefork).dispatcher


def job_viewer(room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
    """A function that returns what the queue says of the workers' jobs, for a process that only reads; it never
    fails."""
    return backend_of(settings).viewer(room, settings)


@contextmanager
def open_channel(room: Room, settings: Settings, queue: OpenQueue) -> Iterator[Channel]:
    """The channel of a room. If an object store carries the room, its lease is held while the block runs.

    Raises:
        RetryLater: the store does not answer, or another controller holds the sweep there.
    """
    if settings.store_url is None:
        yield queue.channel
        return
    from sweep.store.channel import open_store_channel

    with open_store_channel(room, settings.store_url, whereabouts(), queue.ended) as channel:
        yield channel
