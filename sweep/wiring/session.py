"""Creates sweeps, and puts a controller together from settings and the real world.

Invariant: what is expensive to import is imported when it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sweep.config.queues import LaunchQueue, SimulatedQueue, SlurmQueue
from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.evaluation.jobs import DIRECTORY, evaluation_settings, evaluation_spec, evaluations_room, wanted
from sweep.model import Mode
from sweep.tracking.runs import tracking_of, wandb_location
from sweep.wiring.backends import (
    ends_of,
    make_channel,
    make_dispatcher,
    on_gpu,
    open_channel,
    simulated_world_of,
    worker_count,
)
from sweep.wiring.rooms import find_room, journal_path, load_settings, rooms_dir, save_settings, stopped_runs
from trainer.contract import TrialSpec
from trainer.room import Room, write_atomic

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.controller.loop import Controller, SpecFactory
    from sweep.controller.ports import Channel, Dispatcher, Listener, Ports
    from sweep.evaluation.controller import CombinedController
    from sweep.processes import PreforkServer
    from sweep.search.study import OptunaStudy
    from sweep.search.study_config import StudyConfig
    from sweep.wiring.compose import Composed


class WallClock:
    """A `Clock` on the machine's wall clock, which goes on over restarts."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def create_room(composed: Composed, trial_tokens: int) -> Room:
    """A new room with frozen settings, its study and its warm start.

    Raises:
        ConfigError: a warm start does not fit, or the storage holds a study of this name.
    """
    from sweep.search.storage import absolute_url

    settings = _with_entity(replace(composed.settings, trial_tokens=trial_tokens, created=time.time()))
    if settings.storage is not None:
        settings = replace(settings, storage=absolute_url(settings.storage))
    room = Room((rooms_dir() / settings.name).resolve())
    study = open_study(room, settings, new=True)
    write_atomic(room.root / "recipe.yaml", composed.recipe_text)
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    for source in settings.warm_start.import_from:
        _import(study, settings, source)
    save_settings(room, settings)
    return room


def _with_entity(settings: Settings) -> Settings:
    """Where Launch is used, say whose the runs are: the key's owner's default may change, a sweep's may not."""
    if not isinstance(settings.queue, LaunchQueue) or wandb_location(settings).entity:
        return settings
    from sweep.queues.launch.api import default_entity

    return replace(settings, wandb=replace(settings.wandb, entity=default_entity()))


def study_config(settings: Settings) -> StudyConfig:
    """What makes a study of these settings."""
    from sweep.search.build import build_pruner, build_sampler, keeps_one_seed
    from sweep.search.study_config import StudyConfig

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


def open_study(room: Room, settings: Settings, new: bool = False) -> OptunaStudy:
    """The study of a room, for its one controller.

    Args:
        new: the room is being made.

    Raises:
        ConfigError: another sweep's study has this name in the storage, or the storage cannot be opened.
        GiveUp: the study is gone.
    """
    from sweep.search.storage import journal_storage, opening
    from sweep.search.study import OptunaStudy

    config = study_config(settings)
    if settings.storage is not None:
        with opening(settings.storage, config.name):
            return OptunaStudy(config, settings.storage, exists=not new)
    room.root.mkdir(parents=True, exist_ok=True)
    # a journal in a room that is being made is of a sweep that died at the same place
    return OptunaStudy(config, journal_storage(journal_path(room)), exists=None if new else True)


def reading_storage(room: Room, settings: Settings) -> BaseStorage | str:
    """The study's storage, for a reader beside a running controller."""
    from sweep.search import storage

    return settings.storage or storage.reading_storage(journal_path(room))


@contextmanager
def open_world(room: Room, settings: Settings, prefork: PreforkServer) -> Iterator[tuple[OptunaStudy, Ports]]:
    """The study and the ports of a sweep over the real world; the caller holds the room's lock.

    Raises:
        RetryLater: see `open_channel`.
    """
    if isinstance(settings.queue, SimulatedQueue):
        study = open_study(room, settings)
        yield study, _simulated_ports(room, settings, study)
        return
    from sweep.controller.ports import Ports

    dispatcher = make_dispatcher(room, settings, prefork)
    with open_channel(room, settings, dispatcher) as channel:
        study = open_study(room, settings)  # not before: a store may have brought a newer one
        yield study, Ports(study, channel, dispatcher, WallClock())


def make_controller(
    room: Room, settings: Settings, world: tuple[OptunaStudy, Ports], listener: Listener, mode: Callable[[], Mode]
) -> Controller:
    """A controller over an open world."""
    from sweep.controller.ledger import RoomLedger
    from sweep.controller.loop import Controller

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
    from sweep.queues.simulated.dispatcher import simulated_ports

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
    from sweep.config.torchtune import value_at
    from sweep.queues.simulated.tables import load_table

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
    main: Controller, room: Room, settings: Settings, parts: tuple[OptunaStudy, PreforkServer], listener: Listener
) -> Iterator[Controller | CombinedController]:
    """A sweep's controller together with that of its evaluations, where any are wanted.

    Args:
        listener: told of the evaluations.

    Raises:
        RetryLater: see `open_channel`.
    """
    if not wanted(settings.evaluate) or isinstance(settings.queue, SimulatedQueue):
        yield main
        return
    from sweep.controller.loop import Controller
    from sweep.controller.ports import Ports
    from sweep.evaluation.controller import CombinedController, EvaluationMode, EvaluationStudy

    study, prefork = parts
    inner, beside = evaluation_settings(settings), evaluations_room(room)
    waits = on_gpu(settings) and not isinstance(settings.queue, SlurmQueue | LaunchQueue)
    dispatcher = make_dispatcher(beside, inner, None if waits else prefork)
    evaluation_mode = EvaluationMode(main.mode)
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
            mode=evaluation_mode,
            created=settings.created,
            poll_seconds=main.poll_seconds,
        )
        yield CombinedController(main, controller, evaluation_mode, waits)


@contextmanager
def _open_beside(main: Channel, beside: Room, dispatcher: Dispatcher) -> Iterator[Channel]:
    """The channel of the evaluations' room, which lies where the sweep's own does."""
    from sweep.store.channel import StoreChannel

    if not isinstance(main, StoreChannel):
        yield make_channel(beside, dispatcher)
        return
    with main.within(beside, DIRECTORY) as channel:
        channel.job_ends = ends_of(dispatcher)
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
    from sweep.config.torchtune import resolve, seed_of_final

    trial, attempt, worker = identity
    config = resolve(settings.torchtune, params, settings.derive)
    if config.get("seed") is None:
        config["seed"] = settings.search.seed  # torchtune would draw one, and the trial could not be repeated
    if final_seed is not None:
        config["seed"] = seed_of_final(int(config["seed"]), final_seed)
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
    from sweep.search.distributions import same_space
    from sweep.search.storage import load_study

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
