"""Runs controllers that are killed at chosen moments, over a real room, study and worker processes.

A moment is the end of an effect, or the beginning or end of a durable act. `tests.helpers.sweep_checks` says what must
hold afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import Engine

from sweep.config.settings import Settings
from sweep.controller import room_channel
from sweep.controller.ledger import RoomLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Channel, Ports
from sweep.evaluation.controller import CombinedController, EvaluationMode, EvaluationStudy
from sweep.evaluation.jobs import evaluation_settings, evaluation_spec, evaluations_room, is_enabled
from sweep.model.effects import Effect, Finish
from sweep.model.identifiers import AttemptId
from sweep.model.states import Mode
from sweep.queues.launch import channel as wandbchannel
from sweep.queues.launch import dispatcher as launch_dispatch
from sweep.queues.launch.dispatcher import LaunchDispatcher
from sweep.queues.launch.runs import Runs
from sweep.queues.launch.section import LaunchQueue
from sweep.queues.slurm.dispatcher import SlurmDispatcher
from sweep.queues.slurm.section import SlurmQueue
from sweep.queues.slurm.submit import Submission
from sweep.search.study import OptunaStudy
from sweep.tracking.stopped_runs import stopped_runs
from sweep.wiring import backends, creation, session
from sweep.wiring.compose import Composed, compose_config, freeze
from sweep.wiring.rooms import controller_lock, load_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import spec_factory
from tests.helpers.fakes import FastDispatcher, serve_fast
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer import files
from trainer.room import Room, hold

STEP_SECONDS = "0.01"
PATH_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class KillingListener(Silent):
    """A listener that may kill its own process after a number of effects.

    Args:
        die_after: how many effects; None: it does nothing.
    """

    def __init__(self, die_after: int | None = None) -> None:
        self._left = die_after

    def done(self, effect: Effect) -> None:
        if self._left is not None and not isinstance(effect, Finish):  # the end itself does nothing
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def make_room(rooms: Path, *overrides: str) -> Room:
    """The room of a new sweep; see `composed`."""
    rooms.mkdir(parents=True, exist_ok=True)
    return creation.create_room(composed(*overrides), 40)


def composed(*overrides: str) -> Composed:
    """A sweep over made-up curves, without pauses unless they are asked for; nothing of it needs torch."""
    words = ["objective=loss", "objective.milestone_tokens=10", "search.trials=8", "queue.workers=2", *overrides]
    for group, option in (("sampler", "tpe"), ("pruner", "successive_halving")):
        if not any(word.startswith(f"{group}=") for word in overrides):
            words.append(f"{group}={option}")
    words.append("space.optimizer.lr=tag(log,interval(1e-5,1e-1))")
    words += ["space.model.lora_rank=null", "space.gradient_accumulation_steps=null", "derive.model.lora_alpha=null"]
    return _composed(tuple(words), Path.cwd(), os.environ.get("WANDB_MODE"))


@cache
def _composed(words: tuple[str, ...], directory: Path, wandb: str | None) -> Composed:
    """The composition of these words, once for all tests that want the same."""
    return freeze(compose_config(words), "s")


def controller(room: Room, listener: Silent, mode: Mode = Mode.RUN) -> Controller:
    """The controller of a room, as `session.make_controller` makes it, with workers that need no torch."""
    settings = load_settings(room)
    study = session.open_study(room, settings)
    channel: Channel = room_channel.RoomChannel(room)
    dispatcher = fast_dispatcher(room, settings)
    if isinstance(dispatcher, LaunchDispatcher):
        channel = wandbchannel.make_channel(room, dispatcher)
    return Controller(
        ports=Ports(study, channel, dispatcher, session.BootClock()),
        limits=settings.limits(backends.worker_count(settings)),
        spec=spec_factory(settings, study.params, study.seed_of, partial(stopped_runs, room)),
        listener=listener,
        mode=lambda: mode,
        created=session.created_at(settings),
        poll_seconds=0.02,
        ledger=RoomLedger(room),
    )


def controllers(room: Room, listener: Silent, mode: Mode = Mode.RUN) -> Controller | CombinedController:
    """The controller of a room, with that of its evaluations if it has any; see `session.with_evaluations`."""
    settings = load_settings(room)
    main = controller(room, listener, mode)
    if not is_enabled(settings.evaluate):
        return main
    assert isinstance(main.ports.study, OptunaStudy)
    inner_room, inner = evaluations_room(room), evaluation_settings(settings)
    inner_room.root.mkdir(exist_ok=True)
    evaluation_mode = EvaluationMode(main.mode)
    study = EvaluationStudy(inner_room, main.ports.study.winners)
    evaluations = Controller(
        ports=Ports(
            study, room_channel.RoomChannel(inner_room), fast_dispatcher(inner_room, inner), session.BootClock()
        ),
        limits=inner.limits(1),
        spec=lambda trial, attempt, worker: evaluation_spec(settings, room, AttemptId(trial, attempt, worker)),
        listener=listener,
        mode=evaluation_mode,
        created=session.created_at(settings),
        poll_seconds=0.02,
    )
    return CombinedController(main, evaluations, evaluation_mode, waits=False)


def fast_dispatcher(room: Room, settings: Settings) -> FastDispatcher | SlurmDispatcher | LaunchDispatcher:
    """The dispatcher of a sweep's queue, with workers that need no torch."""
    queue = settings.queue
    if isinstance(queue, SlurmQueue):
        return fast_slurm(room, queue)
    if isinstance(queue, LaunchQueue):
        return fast_launch(room, settings, queue)
    env = {"STEP_SECONDS": STEP_SECONDS, **queue.env}
    return FastDispatcher(room, (), 1, queue.trials_per_worker or 0, slots=max(1, queue.worker_slots), env=env)


def fast_slurm(room: Room, queue: SlurmQueue) -> SlurmDispatcher:
    """The SLURM dispatcher, submitting workers that need no torch."""
    env = {"STEP_SECONDS": STEP_SECONDS, **queue.env}
    seconds = queue.timeout_min * 60 - queue.slurm_signal_delay_s
    options = {"trials": queue.trials_per_worker or 0, "idle_seconds": 20, "seconds": seconds, "env": env}
    options["slots"] = max(1, queue.worker_slots)
    submission = Submission(room, "s", queue.job, options, queue.python, serve_fast)
    return SlurmDispatcher(room, submission, queue.query_seconds)


def launch_api(room: Room) -> FakeLaunchApi:
    return FakeLaunchApi(room.root / "wandb")


def fast_launch(room: Room, settings: Settings, queue: LaunchQueue) -> LaunchDispatcher:
    """The Launch dispatcher, over a directory in the place of W&B."""
    api = launch_api(room)
    return replace(launch_dispatch.make_dispatcher(room, settings, False), api=api, runs=Runs(api, queue.query_seconds))


def run_here(room: Room, mode: Mode = Mode.RUN) -> Finish:
    with hold(controller_lock(room), "test") as mine:
        assert mine
        return controllers(room, Silent(), mode).run()


def run_killed(room: Room, prepare: Callable[[], int | None]) -> bool:
    """Run a controller in a child process that may kill itself; True where it came to its end.

    Args:
        prepare: runs in the child; returns after how many effects it dies.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_after = prepare()
            with hold(controller_lock(room), "test") as mine:
                assert mine, "another controller holds the room"
                controllers(room, KillingListener(die_after)).run()
            code = 0
        finally:
            os._exit(code)
    return ended_by_itself(pid)


def killed_before_act(act: Callable[[], object], count: int, below: Path) -> bool:
    """Run a function in a child process that dies before its count-th durable act; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_before_act(count, below)
            act()
            code = 0
        finally:
            os._exit(code)
    return ended_by_itself(pid)


def ended_by_itself(pid: int) -> bool:
    """Wait for a child; whether it came to its end, and was not killed.

    Raises:
        AssertionError: it failed, or ended by another signal than SIGKILL.
    """
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the controller failed by itself, with exit code {code}"
    return code == 0


def die_at_write(count: int) -> Callable[[], None]:
    """Make this process kill itself right before or right after its count-th durable act, alternately.

    Durable acts are whole files, lines of the ledger and of the study's journal, and the start of a process.
    """
    left = [count]

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def act(*args: object, **more: object) -> object:
            left[0] -= 1
            if left[0] == 0 and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **more)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return act

    def install() -> None:
        _replace(files.write_atomic, wrap(files.write_atomic), ("sweep.", "trainer."))
        _replace(files.append_line, wrap(files.append_line), ("sweep.",))
        JournalFileBackend.append_logs = wrap(JournalFileBackend.append_logs)  # type: ignore[method-assign, assignment]
        for name in ("push", "stop", "configure", "delete_item"):
            setattr(FakeLaunchApi, name, wrap(getattr(FakeLaunchApi, name)))
        subprocess.Popen = wrap(subprocess.Popen)  # type: ignore[misc, assignment]

    return install


def _replace(function: Callable[..., object], other: Callable[..., object], packages: tuple[str, ...]) -> None:
    """Put another function in the place of one in every module of these packages that has imported it."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith(packages) and getattr(module, function.__name__, None) is function:
            setattr(module, function.__name__, other)


def die_before_act(count: int, below: Path) -> None:
    """Make this process kill itself before its count-th durable act, whatever function does it.

    Acts are what Python's audit events tell: a file below a directory that is opened for writing, renamed, linked or
    deleted; a directory that is made there; a process that is started; and a transaction that a database commits.
    Locks do not count: whether one is held is asked in every round. There is no way back for this process.
    """
    left = [count]

    def act() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and args[2] & WRITING and not str(args[0]).endswith("lock")
        if event == "subprocess.Popen" or ((writes or event in PATH_EVENTS) and _is_below(args, below)):
            act()

    sys.addaudithook(hook)
    sqlalchemy.event.listen(Engine, "commit", lambda connection: act())


def _is_below(args: tuple[Any, ...], directory: Path) -> bool:
    return any(isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(str(directory)) for arg in args)
