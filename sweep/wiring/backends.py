"""The dispatcher and the channel of each kind of queue, put together from settings and the real world.

Invariant: what is expensive to import is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config.queues import LaunchQueue, SimulatedQueue, SlurmQueue
from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model import Job
from sweep.tracking.runs import wandb_location
from sweep.wiring.rooms import mark_stopped, whereabouts
from trainer.room import Room

if TYPE_CHECKING:
    from sweep.controller.ports import Channel, Dispatcher
    from sweep.processes import PreforkServer
    from sweep.queues.launch.dispatcher import LaunchDispatcher
    from sweep.queues.local.dispatcher import LocalDispatcher
    from sweep.queues.simulated.world import World
    from sweep.queues.slurm.dispatcher import SlurmDispatcher


def worker_count(settings: Settings) -> int:
    """How many workers the queue comes to; on this machine, where the configuration leaves it open."""
    from sweep.queues.local.dispatcher import cores, visible_gpus

    if settings.queue.workers is not None:
        return settings.queue.workers
    return len(visible_gpus()) if on_gpu(settings) else max(1, cores())


def on_gpu(settings: Settings) -> bool:
    """Whether the recipe trains on CUDA.

    Raises:
        ConfigError: it wants CUDA, and this machine shows no GPU.
    """
    from sweep.queues.local.dispatcher import visible_gpus

    device = str(settings.torchtune.get("device"))
    if isinstance(settings.queue, SimulatedQueue):
        return False
    if isinstance(settings.queue, SlurmQueue | LaunchQueue):
        return device.startswith("cuda")
    if device.startswith("cuda") and not visible_gpus():
        raise ConfigError(
            f"device={device}, but this machine shows no GPU to queue=local; "
            "set recipe.overrides.device=cpu, or CUDA_VISIBLE_DEVICES"
        )
    return device.startswith("cuda")


def make_dispatcher(room: Room, settings: Settings, prefork: PreforkServer | None = None) -> Dispatcher:
    """The dispatcher of the configured queue; without a prefork server the local one starts each worker by itself."""
    match settings.queue:
        case SimulatedQueue():
            return simulated_world_of(room, settings)[1]
        case SlurmQueue() as queue:
            return _slurm_dispatcher(room, settings, queue)
        case LaunchQueue() as queue:
            return launch_dispatcher(room, settings, queue)
    return _local_dispatcher(room, settings, prefork)


def _local_dispatcher(room: Room, settings: Settings, prefork: PreforkServer | None) -> LocalDispatcher:
    from sweep.queues.local.dispatcher import LocalDispatcher, cores, visible_gpus

    queue = settings.queue
    threads = queue.threads or max(1, cores() // worker_count(settings))
    return LocalDispatcher(
        room=room,
        gpus=visible_gpus() if on_gpu(settings) else (),
        threads=threads,
        trials=queue.trials_per_worker or 0,
        idle_seconds=queue.idle_seconds,
        slots=queue.worker_slots,
        env=queue.worker_env,
        prefork=prefork,
    )


def _slurm_dispatcher(room: Room, settings: Settings, queue: SlurmQueue, reads: bool = False) -> SlurmDispatcher:
    from sweep.queues.slurm.dispatcher import SlurmDispatcher
    from sweep.queues.slurm.submit import Submission

    threads = str(queue.threads or queue.cpus_per_task or 1)
    options = {
        "trials": queue.trials_per_worker or 0,
        "idle_seconds": queue.idle_seconds,
        "slots": queue.worker_slots,
        "seconds": queue.timeout_min * 60 - queue.slurm_signal_delay_s,
        "gpu": on_gpu(settings),
        "env": {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **queue.worker_env},
    }
    submission = Submission(room, settings.name, queue.job, options, queue.python)
    return SlurmDispatcher(room, submission, queue.query_seconds, reads)


def launch_dispatcher(room: Room, settings: Settings, queue: LaunchQueue, reads: bool = False) -> LaunchDispatcher:
    from sweep.queues.launch import jobs
    from sweep.queues.launch.api import Runs, make_api
    from sweep.queues.launch.dispatcher import LaunchDispatcher

    api = make_api(queue, wandb_location(settings), jobs.job_name(settings))
    return LaunchDispatcher(
        room=room,
        queue=queue,
        api=api,
        runs=Runs(api, queue.query_seconds),
        payload=lambda worker, specs: jobs.payload(settings, room, worker, specs, on_gpu(settings)),
        run_of=lambda worker, specs: jobs.run_of(settings, worker, specs),
        stopping=partial(mark_stopped, room),
        reads=reads,
    )


def make_channel(room: Room, dispatcher: Dispatcher) -> Channel:
    """How reports and stops travel where controller and jobs share the room, or W&B."""
    from sweep.controller.room_channel import RoomChannel
    from sweep.queues.launch.dispatcher import LaunchDispatcher

    if isinstance(dispatcher, LaunchDispatcher) and dispatcher.queue.channel == "wandb":
        from sweep.queues.launch.channel import WandbChannel

        return WandbChannel(room, RoomChannel(room), dispatcher.api, dispatcher.runs, dispatcher.stopping)
    return RoomChannel(room)


@contextmanager
def open_channel(room: Room, settings: Settings, dispatcher: Dispatcher) -> Iterator[Channel]:
    """The same; where an object store carries the room, its lease is held while the block runs.

    Raises:
        RetryLater: the store does not answer, or another controller holds the sweep there.
    """
    if settings.store_url is None:
        yield make_channel(room, dispatcher)
        return
    from sweep.store.channel import open_store_channel

    with open_store_channel(room, settings.store_url, whereabouts(), ends_of(dispatcher)) as channel:
        yield channel


def ends_of(dispatcher: Dispatcher) -> Callable[[], object]:
    """What changes whenever a job of a Launch queue ends; of other queues nothing is known."""
    from sweep.queues.launch.dispatcher import LaunchDispatcher

    return dispatcher.ended if isinstance(dispatcher, LaunchDispatcher) else object


def job_viewer(room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
    """What the queue says of the workers' jobs, for somebody who only looks; it never fails."""
    from sweep.queues.local.dispatcher import LocalDispatcher

    queue = settings.queue
    dispatcher: Dispatcher
    if isinstance(queue, SimulatedQueue):
        return simulated_world_of(room, settings)[1].poll
    if isinstance(queue, SlurmQueue):
        dispatcher = _slurm_dispatcher(room, settings, queue, reads=True)
    elif isinstance(queue, LaunchQueue):
        dispatcher = launch_dispatcher(room, settings, queue, reads=True)
    else:
        dispatcher = LocalDispatcher(room, (), 1)
    return dispatcher.poll


def make_prefork(settings: Settings) -> PreforkServer:
    """Processes that import torch while the data are counted; none is started yet."""
    from sweep.processes import PreforkServer

    if isinstance(settings.queue, SlurmQueue | LaunchQueue) or not on_gpu(settings):
        return PreforkServer(env=settings.queue.worker_env)
    dispatcher = _local_dispatcher(Room(Path()), settings, None)
    return PreforkServer([dispatcher.own_env(place) for place in range(worker_count(settings))])


def simulated_world_of(room: Room, settings: Settings) -> tuple[World, Dispatcher]:
    """The world of a room whose queue is simulated, and its dispatcher."""
    from sweep.queues.simulated.dispatcher import SimulatedDispatcher, world_of

    world = world_of(room, lambda: make_world(settings))
    return world, SimulatedDispatcher(world)


def make_world(settings: Settings) -> World:
    """A new world of simulated workers, as the queue's section describes it."""
    from sweep.queues.simulated.tables import load_table
    from sweep.queues.simulated.world import World

    queue = settings.queue
    assert isinstance(queue, SimulatedQueue)
    return World(load_table(queue.table, queue.columns), queue.simulation_model, int(queue.slots), queue.seed)
