"""Creates sweeps, and puts a controller together from settings and the real world.

Invariant: what is expensive to import is imported when it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.evaluation import DIRECTORY, evaluation_settings, evaluation_spec, evaluations_room, wanted
from sweep.model import Job, Mode
from sweep.queues import LaunchQueue, SimulatedQueue, SlurmQueue
from sweep.rooms import (
    find_room,
    journal_path,
    load_settings,
    mark_stopped,
    rooms_dir,
    save_settings,
    stopped_runs,
    whereabouts,
)
from sweep.settings import Settings
from sweep.tracking import place, tracking_of
from trainer.contract import TrialSpec
from trainer.room import Room, write_atomic

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.beside import Together
    from sweep.config import Composed
    from sweep.dispatch.launch import LaunchDispatcher
    from sweep.dispatch.local import LocalDispatcher
    from sweep.dispatch.slurm import SlurmDispatcher
    from sweep.loop import Controller, Listener, SpecFactory
    from sweep.nursery import Nursery
    from sweep.ports import Channel, Dispatcher, Ports
    from sweep.simulation import World
    from sweep.study import OptunaStudy, StudyConfig


class WallClock:
    """A `Clock` on the machine's wall clock, which goes on over restarts."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def create_room(composed: Composed, trial_tokens: int) -> Room:
    """A new room with frozen settings, its study and its warm start.

    Raises:
        ConfigError: a warm start does not fit.
    """
    settings = _with_entity(replace(composed.settings, trial_tokens=trial_tokens, created=time.time()))
    room = Room((rooms_dir() / settings.name).resolve())
    write_atomic(room.root / "recipe.yaml", composed.recipe_text)
    study = open_study(room, settings)
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    for source in settings.warm_start.import_from:
        _import(study, settings, source)
    save_settings(room, settings)
    return room


def _with_entity(settings: Settings) -> Settings:
    """Where Launch is used, say whose the runs are: the key's owner's default may change, a sweep's may not."""
    if not isinstance(settings.queue, LaunchQueue) or place(settings).entity:
        return settings
    from sweep.launchapi import default_entity

    return replace(settings, wandb=replace(settings.wandb, entity=default_entity()))


def study_config(settings: Settings) -> StudyConfig:
    """What makes a study of these settings."""
    from sweep.config import build_pruner, build_sampler, keeps_one_seed
    from sweep.study import StudyConfig

    return StudyConfig(
        name=settings.name,
        space=settings.space,
        metric=settings.metric,
        seed=settings.search.seed,
        sampler=lambda seed: build_sampler(settings, seed),
        pruner=build_pruner(settings),
        per_trial_seed=not keeps_one_seed(settings),
        milestones=settings.reports_per_trial,
        history=settings.search.history,
        finalists=settings.search.finalists,
        seeds=settings.search.seeds,
    )


def open_study(room: Room, settings: Settings) -> OptunaStudy:
    """The study of a room, for its one controller."""
    from sweep.study import OptunaStudy, journal_storage

    room.root.mkdir(parents=True, exist_ok=True)
    return OptunaStudy(study_config(settings), settings.storage or journal_storage(journal_path(room)))


def reading_storage(room: Room, settings: Settings) -> BaseStorage | str:
    """The study's storage, for a reader beside a running controller."""
    from sweep import study

    return settings.storage or study.reading_storage(journal_path(room))


def worker_count(settings: Settings) -> int:
    """How many workers the queue comes to; on this machine, where the configuration leaves it open."""
    from sweep.dispatch.local import cores, visible_gpus

    if settings.queue.workers is not None:
        return settings.queue.workers
    return len(visible_gpus()) if on_gpu(settings) else max(1, cores())


def on_gpu(settings: Settings) -> bool:
    """Whether the recipe trains on CUDA.

    Raises:
        ConfigError: it wants CUDA, and this machine shows no GPU.
    """
    from sweep.dispatch.local import visible_gpus

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


def make_dispatcher(room: Room, settings: Settings, nursery: Nursery | None = None) -> Dispatcher:
    """The dispatcher of the configured queue; without a nursery the local one starts each worker by itself."""
    match settings.queue:
        case SimulatedQueue():
            return simulated_world_of(room, settings)[1]
        case SlurmQueue() as queue:
            return _slurm_dispatcher(room, settings, queue)
        case LaunchQueue() as queue:
            return _launch_dispatcher(room, settings, queue)
    return _local_dispatcher(room, settings, nursery)


def _local_dispatcher(room: Room, settings: Settings, nursery: Nursery | None) -> LocalDispatcher:
    from sweep.dispatch.local import LocalDispatcher, cores, visible_gpus

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
        nursery=nursery,
    )


def _slurm_dispatcher(room: Room, settings: Settings, queue: SlurmQueue, reads: bool = False) -> SlurmDispatcher:
    from sweep.dispatch.slurm import SlurmDispatcher
    from sweep.submit import Submission

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


def _launch_dispatcher(room: Room, settings: Settings, queue: LaunchQueue, reads: bool = False) -> LaunchDispatcher:
    from sweep import launchjobs
    from sweep.dispatch.launch import LaunchDispatcher
    from sweep.launchapi import Runs, make_api

    api = make_api(queue, place(settings), launchjobs.job_name(settings))
    return LaunchDispatcher(
        room=room,
        queue=queue,
        api=api,
        runs=Runs(api, queue.query_seconds),
        payload=lambda worker, specs: launchjobs.payload(settings, room, worker, specs, on_gpu(settings)),
        run_of=lambda worker, specs: launchjobs.run_of(settings, worker, specs),
        stopping=partial(mark_stopped, room),
        reads=reads,
    )


def make_channel(room: Room, dispatcher: Dispatcher) -> Channel:
    """How reports and stops travel where controller and jobs share the room, or W&B."""
    from sweep.channel import RoomChannel
    from sweep.dispatch.launch import LaunchDispatcher

    if isinstance(dispatcher, LaunchDispatcher) and dispatcher.queue.channel == "wandb":
        from sweep.wandbchannel import WandbChannel

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
    from sweep.mirrored import mirrored

    with mirrored(room, settings.store_url, whereabouts(), _ends(dispatcher)) as channel:
        yield channel


def _ends(dispatcher: Dispatcher) -> Callable[[], object]:
    """What changes whenever a job of a Launch queue ends; of other queues nothing is known."""
    from sweep.dispatch.launch import LaunchDispatcher

    return dispatcher.ended if isinstance(dispatcher, LaunchDispatcher) else object


def job_viewer(room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
    """What the queue says of the workers' jobs, for somebody who only looks; it never fails."""
    from sweep.dispatch.local import LocalDispatcher

    queue = settings.queue
    dispatcher: Dispatcher
    if isinstance(queue, SimulatedQueue):
        return simulated_world_of(room, settings)[1].poll
    if isinstance(queue, SlurmQueue):
        dispatcher = _slurm_dispatcher(room, settings, queue, reads=True)
    elif isinstance(queue, LaunchQueue):
        dispatcher = _launch_dispatcher(room, settings, queue, reads=True)
    else:
        dispatcher = LocalDispatcher(room, (), 1)
    return dispatcher.poll


def make_nursery(settings: Settings) -> Nursery:
    """Processes that import torch while the data are counted; none is started yet."""
    from sweep.nursery import Nursery

    if isinstance(settings.queue, SlurmQueue | LaunchQueue) or not on_gpu(settings):
        return Nursery(env=settings.queue.worker_env)
    dispatcher = _local_dispatcher(Room(Path()), settings, None)
    return Nursery([dispatcher.own_env(place) for place in range(worker_count(settings))])


def simulated_world_of(room: Room, settings: Settings) -> tuple[World, Dispatcher]:
    """The world of a room whose queue is simulated, and its dispatcher."""
    from sweep.dispatch.simulated import SimulatedDispatcher, world_of

    world = world_of(room, lambda: make_world(settings))
    return world, SimulatedDispatcher(world)


def make_world(settings: Settings) -> World:
    """A new world of simulated workers, as the queue's section describes it."""
    from sweep.simulation import World
    from sweep.tables import load_table

    queue = settings.queue
    assert isinstance(queue, SimulatedQueue)
    return World(load_table(queue.table, queue.columns), queue.fates, int(queue.slots), queue.seed)


@contextmanager
def open_world(room: Room, settings: Settings, nursery: Nursery) -> Iterator[tuple[OptunaStudy, Ports]]:
    """The study and the ports of a sweep over the real world; the caller holds the room's lock.

    Raises:
        RetryLater: see `open_channel`.
    """
    if isinstance(settings.queue, SimulatedQueue):
        study = open_study(room, settings)
        yield study, _simulated_ports(room, settings, study)
        return
    from sweep.ports import Ports

    dispatcher = make_dispatcher(room, settings, nursery)
    with open_channel(room, settings, dispatcher) as channel:
        study = open_study(room, settings)  # not before: a store may have brought a newer one
        yield study, Ports(study, channel, dispatcher, WallClock())


def make_controller(
    room: Room, settings: Settings, world: tuple[OptunaStudy, Ports], listener: Listener, mode: Callable[[], Mode]
) -> Controller:
    """A controller over an open world."""
    from sweep.ledger import RoomLedger
    from sweep.loop import Controller

    study, ports = world
    workers = worker_count(settings)
    created = 0.0 if isinstance(settings.queue, SimulatedQueue) else settings.created
    return Controller(
        ports=ports,
        limits=settings.limits(workers),
        spec=spec_maker(settings, study.params, study.seed_of, partial(stopped_runs, room)),
        listener=listener,
        mode=mode,
        created=created,
        poll_seconds=settings.queue.poll_seconds,
        ledger=RoomLedger(room),
    )


def _simulated_ports(room: Room, settings: Settings, study: OptunaStudy) -> Ports:
    from sweep.dispatch.simulated import simulated_ports

    queue = settings.queue
    assert isinstance(queue, SimulatedQueue)
    world, _ = simulated_world_of(room, settings)
    return simulated_ports(world, study, queue.look_seconds, queue.charge)


def spec_maker(
    settings: Settings,
    params: Callable[[int], Mapping[str, Any]],
    seed_of: Callable[[int], int | None],
    stopped: Callable[[], Collection[str]] = tuple,
) -> SpecFactory:
    """What builds specifications: a torchtune configuration, or what a simulated worker looks up in its table.

    Args:
        params: a trial's hyperparameters; seed_of: which of the finals' seeds it is trained with, None for no final.
        stopped: the W&B runs that no attempt goes on in.
    """
    queue = settings.queue
    if not isinstance(queue, SimulatedQueue):
        return lambda trial, attempt, worker: trial_spec(
            settings, params(trial), (trial, attempt, worker), seed_of(trial), stopped()
        )
    from sweep.recipe import value_at
    from sweep.tables import load_table

    keys = load_table(queue.table, queue.columns).grid
    base = {key: value_at(settings.torchtune, key) for key in keys if key not in settings.space}

    def spec(trial: int, attempt: int, worker: str) -> TrialSpec:
        seed = seed_of(trial)
        config = {**base, **params(trial), **({} if seed is None else {"seed": seed})}
        tokens, every = settings.milestone_tokens, settings.trial.checkpoint_every
        return TrialSpec(settings.name, trial, attempt, worker, config, tokens, every)

    return spec


@contextmanager
def with_evaluations(
    main: Controller, room: Room, settings: Settings, parts: tuple[OptunaStudy, Nursery], listener: Listener
) -> Iterator[Controller | Together]:
    """A sweep's controller together with that of its evaluations, where any are wanted.

    Args:
        listener: told of the evaluations.

    Raises:
        RetryLater: see `open_channel`.
    """
    if not wanted(settings.evaluate) or isinstance(settings.queue, SimulatedQueue):
        yield main
        return
    from sweep.beside import EvaluationStudy, Gate, Together
    from sweep.loop import Controller
    from sweep.ports import Ports

    study, nursery = parts
    inner, beside = evaluation_settings(settings), evaluations_room(room)
    waits = on_gpu(settings) and not isinstance(settings.queue, SlurmQueue | LaunchQueue)
    dispatcher = make_dispatcher(beside, inner, None if waits else nursery)
    gate = Gate(main.mode)
    if not beside.sweep.exists():
        save_settings(beside, inner)
    with _open_beside(main.ports.channel, beside, dispatcher) as channel:
        judges = EvaluationStudy(beside, study.winners)
        controller = Controller(
            ports=Ports(judges, channel, dispatcher, main.ports.clock),
            limits=inner.limits(1),
            spec=lambda trial, attempt, worker: evaluation_spec(
                settings, room, (trial, attempt, worker), stopped_runs(beside)
            ),
            listener=listener,
            mode=gate,
            created=settings.created,
            poll_seconds=main.poll_seconds,
        )
        yield Together(main, controller, gate, waits)


@contextmanager
def _open_beside(main: Channel, beside: Room, dispatcher: Dispatcher) -> Iterator[Channel]:
    """The channel of the evaluations' room, which lies where the sweep's own does."""
    from sweep.mirrored import MirroredChannel

    if not isinstance(main, MirroredChannel):
        yield make_channel(beside, dispatcher)
        return
    with main.within(beside, DIRECTORY) as channel:
        channel.ended = _ends(dispatcher)
        yield channel


def trial_spec(
    settings: Settings,
    params: Any,
    identity: tuple[int, int, str],
    final_seed: int | None = None,
    stopped: Collection[str] = (),
) -> TrialSpec:
    """The specification of an attempt (trial, attempt, worker).

    Args:
        final_seed: which of the finals' seeds; each is another than the one that the search trained with.
        stopped: see `spec_maker`.
    """
    from sweep.recipe import resolve

    trial, attempt, worker = identity
    config = resolve(settings.torchtune, params, settings.derive)
    if config.get("seed") is None:
        config["seed"] = settings.search.seed  # torchtune would draw one, and the trial could not be repeated
    if final_seed is not None:
        config["seed"] = int(config["seed"]) + 1 + final_seed
    tracking = tracking_of(settings, trial, config, stopped)
    return TrialSpec(
        sweep=settings.name,
        trial=trial,
        attempt=attempt,
        worker=worker,
        config=config,
        milestone_tokens=settings.milestone_tokens,
        checkpoint_every=settings.trial.checkpoint_every,
        guard=settings.guard,
        components=tuple(settings.recipe.components),
        adapter_every=1 if tracking and settings.wandb.artifacts == "milestones" else 0,
        tracking=tracking,
    )


def _import(study: OptunaStudy, settings: Settings, source: str) -> None:
    from sweep.distributions import same_space
    from sweep.study import load_study

    room = find_room(source)
    other = load_settings(room)
    if other.metric != settings.metric:
        raise ConfigError(
            f"warm_start.import_from: {source} minimised {other.metric}, this sweep minimises {settings.metric}"
        )
    loaded = load_study(reading_storage(room, other), other.name)
    if not same_space(loaded, settings.space):
        raise ConfigError(f"warm_start.import_from: {source} has another space; its trials cannot be taken over")
    study.import_trials(other.name, loaded.get_trials(deepcopy=False))
