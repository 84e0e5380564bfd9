"""Puts the study and the controller of a sweep together from its settings and the real world.

Invariant: what is expensive to import is imported when it is used.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sweep.config.settings import Settings
from sweep.errors import GiveUp
from sweep.evaluation.jobs import DIRECTORY, evaluation_settings, evaluation_spec, evaluations_room, is_enabled
from sweep.model.identifiers import AttemptId
from sweep.model.states import Mode
from sweep.tracking.stopped_runs import stopped_runs
from sweep.wiring.backends import backend_of, on_gpu, open_channel, worker_count
from sweep.wiring.rooms import journal_path, presence_check, save_settings
from sweep.wiring.specifications import spec_factory
from sweep.wiring.trust import check_owner
from trainer.clock import WallAges, boot_seconds
from trainer.contract import ContractError, Report, decode
from trainer.room import NOT_THE_VALUE, Room, Tail, make_directory, read_object, reason_of, usable, write_atomic

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.controller.loop import Controller
    from sweep.controller.ports import Channel, Listener, Ports
    from sweep.evaluation.controller import CombinedController
    from sweep.processes import PreforkServer
    from sweep.queues.backend import OpenQueue
    from sweep.search.study import OptunaStudy
    from sweep.search.study_config import StudyConfig


# In the room of a sweep with `storage`, only while it is being created: the storage's URL, and the study's token.
CREATION_NOTE = "creating.json"


class BootClock:
    """A `Clock` that steps of the wall clock do not change; it counts the time for which the machine is suspended."""

    def now(self) -> float:
        return boot_seconds()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class OpenSweep(NamedTuple):
    """The study of a sweep, and the ports through which its controller reaches study, workers and time."""

    study: OptunaStudy
    ports: Ports


def study_config(settings: Settings) -> StudyConfig:
    """The configuration of the study of these settings."""
    from sweep.search.build import build_pruner, build_sampler, keeps_one_seed
    from sweep.search.study_config import StudyConfig

    return StudyConfig(
        name=settings.name,
        space=settings.space,
        objective=settings.objectives[0],
        seed=settings.search.seed,
        sampler=lambda seed: build_sampler(settings, seed),
        pruner=build_pruner(settings),
        per_trial_seed=not keeps_one_seed(settings),
        milestones=settings.reports_per_trial,
        history=settings.search.history,
        finalists=settings.search.finalists,
        seeds=settings.search.seeds,
    )


def first_params(settings: Settings, count: int) -> list[dict[str, Any]]:
    """The parameters of the first trials that the sampler would propose, as if none of them had a result.

    The trials of `warm_start.enqueue` come first.
    """
    from sweep.search.storage import memory_storage
    from sweep.search.study import OptunaStudy

    study = OptunaStudy(study_config(settings), memory_storage())
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    proposed: list[dict[str, Any]] = []
    while len(proposed) < count and not study.facts().exhausted:
        proposed.append(dict(study.params(study.ask())))
    return proposed


def open_study(room: Room, settings: Settings, new: bool = False) -> OptunaStudy:
    """The study of a room, for its only controller, which holds the room's lock.

    Args:
        new: the room is being created, perhaps once more after a process that died while it did so.

    Raises:
        ConfigError: another sweep's study has this name in the storage, or the storage cannot be opened.
        GiveUp: the study is gone.
    """
    from sweep.search.journal import advice, journal_storage
    from sweep.search.storage import opening
    from sweep.search.study import OptunaStudy

    config = study_config(settings)
    if settings.storage is not None:
        with opening(settings.storage, config.name):
            return _new_study(room, config, settings.storage) if new else OptunaStudy(config, settings.storage, True)
    journal = journal_path(room)
    if not new and not os.path.lexists(journal):
        raise GiveUp(f"{journal} is gone, so that nothing is known of the study; {advice(journal)}")
    try:
        return OptunaStudy(config, journal_storage(journal), exists=not new)
    except (AssertionError, RuntimeError, StopIteration, *NOT_THE_VALUE) as error:  # whole lines of another study
        raise GiveUp(f"{journal} is no study of this sweep ({reason_of(error)}); {advice(journal)}") from error


def _new_study(room: Room, config: StudyConfig, url: str) -> OptunaStudy:
    """The study of a room that is being created, in a storage that other sweeps use too.

    The room notes a token before the study is created, and the study gets the token before its first trial. So a later
    process that creates the same room tells a study that an earlier one left from that of another sweep.

    Raises:
        DuplicatedStudyError: the storage holds a study of this name that was not created for this room.
    """
    from sweep.search.storage import check_no_study
    from sweep.search.study import OptunaStudy

    note = room.root / CREATION_NOTE
    noted = usable(read_object(note))
    if noted is None or noted.get("storage") != url or not isinstance(noted.get("token"), str):
        check_no_study(url, config.name)
        noted = {"storage": url, "token": uuid.uuid4().hex}
        write_atomic(note, json.dumps(noted), root=room.root)
    study = OptunaStudy(config, url)
    study.claim(str(noted["token"]))
    return study


def reading_storage(room: Room, settings: Settings) -> BaseStorage | str:
    """The storage of the study, for a process that reads while a controller may be running.

    Raises:
        ConfigError: another person's room names a database, to which this user's passwords would be sent.
    """
    from sweep.search import journal

    check_owner(room, settings, used=("storage",))
    return settings.storage or journal.reading_storage(journal_path(room))


@contextmanager
def open_world(room: Room, settings: Settings, prefork: PreforkServer) -> Iterator[OpenSweep]:
    """A sweep that is open for its controller; the caller holds the room's lock.

    Raises:
        RetryLater: see `open_channel`.
    """
    from sweep.controller.disk import PROBE_SECONDS, RoomDisk
    from sweep.controller.ports import Ports

    queue = backend_of(settings).open(room, settings, prefork)
    with open_channel(room, settings, queue) as channel:
        study = open_study(room, settings)  # only now: an object store may have brought a newer one
        clock = queue.clock or BootClock()
        every = min(PROBE_SECONDS, settings.queue.silence_seconds / 4)
        disk = None if settings.queue.simulated else RoomDisk(room, clock, every)
        yield OpenSweep(study, Ports(queue.study(study), channel, queue.dispatcher, clock, disk))


def make_controller(
    room: Room, settings: Settings, opened: OpenSweep, listener: Listener, mode: Callable[[], Mode]
) -> Controller:
    """The controller of an open sweep."""
    from sweep.controller.ledger import RoomLedger
    from sweep.controller.loop import Controller

    study, ports = opened
    return Controller(
        ports=ports,
        limits=settings.limits(worker_count(settings)),
        spec=spec_factory(
            settings,
            study.params,
            study.seed_of,
            partial(stopped_runs, room),
            partial(measures_base, room, study.first),
        ),
        listener=listener,
        mode=mode,
        created=created_at(settings),
        poll_seconds=settings.queue.poll_seconds,
        ledger=RoomLedger(room),
        check=presence_check(room, settings),
    )


def measures_base(room: Room, first: int, trial: int) -> bool:
    """Whether the next attempt of a trial measures the metrics of the base too: the first trial, until it has them.

    Args:
        first: the number of the sweep's first trial.
    """
    if trial != first:
        return False
    for attempt in room.attempts(trial):
        files = room.attempt(trial, attempt)
        for line in Tail(files.reports).lines(files.counted()):
            try:
                if decode(Report, line).base_scores:
                    return False
            except ContractError:
                continue
    return True


def created_at(settings: Settings) -> float:
    """When a sweep was created, on the clock of its controller, in seconds. A simulated sweep began at 0.

    Its age is a fact of the wall clock, since machines and restarts share no other one. It is read once.
    """
    return 0.0 if settings.queue.simulated else boot_seconds() - WallAges().age(settings.name, settings.created)


@contextmanager
def with_evaluations(
    main: Controller, room: Room, settings: Settings, parts: tuple[OptunaStudy, PreforkServer], listener: Listener
) -> Iterator[Controller | CombinedController]:
    """A sweep's controller, together with that of its evaluations if there are any.

    Args:
        parts: the study of the sweep, and the server that forks its workers.
        listener: is told of the evaluations.

    Raises:
        RetryLater: see `open_channel`.
    """
    if not is_enabled(settings.evaluate) or settings.queue.simulated:
        yield main
        return
    from sweep.controller.loop import Controller
    from sweep.controller.ports import Ports
    from sweep.evaluation.controller import CombinedController, EvaluationMode, EvaluationStudy

    study, prefork = parts
    inner, inner_room = evaluation_settings(settings), evaluations_room(room)
    waits = on_gpu(settings) and settings.queue.on_this_machine
    queue = backend_of(inner).open(inner_room, inner, None if waits else prefork)
    evaluation_mode = EvaluationMode(main.mode)
    if not inner_room.sweep.exists():
        make_directory(inner_room.root, room.root)
        save_settings(inner_room, inner)
    with _inner_channel(main.ports.channel, inner_room, queue) as channel:
        judges = EvaluationStudy(inner_room, study.winners)
        controller = Controller(
            ports=Ports(judges, channel, queue.dispatcher, main.ports.clock, main.ports.disk),
            limits=replace(inner.limits(1), first_alone=False, needs_complete=False),
            spec=lambda trial, attempt, worker: evaluation_spec(
                settings, room, AttemptId(trial, attempt, worker), stopped_runs(inner_room)
            ),
            listener=listener,
            mode=evaluation_mode,
            created=main.created,
            poll_seconds=main.poll_seconds,
            check=main.check,
        )
        yield CombinedController(main, controller, evaluation_mode, waits)


@contextmanager
def _inner_channel(main: Channel, inner_room: Room, queue: OpenQueue) -> Iterator[Channel]:
    """The channel of the evaluations' room: through the object store if that carries the sweep's own room."""
    from sweep.store.channel import StoreChannel

    if not isinstance(main, StoreChannel):
        yield queue.channel
        return
    with main.within(inner_room, DIRECTORY) as channel:
        channel.job_ends = queue.ended
        yield channel
