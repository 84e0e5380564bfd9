"""Runs controllers that are killed at chosen moments, over a real room, study and worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

from sweep.config.settings import Settings
from sweep.controller import room_channel
from sweep.controller.ledger import RoomLedger, read_ledger
from sweep.controller.loop import Controller
from sweep.controller.ports import Channel, Ports
from sweep.evaluation import controller as evaluation_controller
from sweep.model.effects import Effect, Finish
from sweep.model.facts import View
from sweep.model.identifiers import AttemptId
from sweep.model.states import Mode
from sweep.queues.launch import channel as wandbchannel
from sweep.queues.launch import dispatcher as launch_dispatch
from sweep.queues.launch.dispatcher import LaunchDispatcher
from sweep.queues.launch.runs import Runs
from sweep.queues.launch.section import LaunchQueue
from sweep.queues.local import dispatcher as local
from sweep.queues.slurm import dispatcher as slurm_dispatch
from sweep.queues.slurm.dispatcher import SlurmDispatcher
from sweep.queues.slurm.section import SlurmQueue
from sweep.queues.slurm.submit import Submission
from sweep.report.reader import open_reader
from sweep.search.strategy.protocol import Promotion
from sweep.tracking.stopped_runs import stopped_runs
from sweep.wiring import backends, creation, session
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import controller_lock, journal_path, load_settings
from sweep.wiring.specifications import trial_spec
from tests.helpers.fakes import FastDispatcher, serve_fast
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer import room as trainer_room
from trainer.contract import Report
from trainer.room import Room, held, hold

STEP_SECONDS = "0.01"


class Quiet:
    """A listener that may kill its own process after a number of effects."""

    def __init__(self, die_after: int | None = None) -> None:
        self.left = die_after

    def reported(self, trial: int, report: Report) -> None:
        pass

    def done(self, effect: Effect) -> None:
        if self.left is not None and not isinstance(effect, Finish):  # the end itself does nothing
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def waited(self, view: View) -> None:
        pass

    def promoted(self, promotion: Promotion) -> None:
        pass

    def round_failed(self, message: str) -> None:
        pass


def make_room(rooms: Path, *overrides: str) -> Room:
    """A new sweep over made-up curves, without pauses unless they are asked for; nothing of it needs torch."""
    words = ["objective=loss", "objective.milestone_tokens=10", "search.trials=8", "queue.workers=2", *overrides]
    for group, option in (("sampler", "tpe"), ("pruner", "successive_halving")):
        if not any(word.startswith(f"{group}=") for word in overrides):
            words.append(f"{group}={option}")
    words.append("space.optimizer.lr=tag(log,interval(1e-5,1e-1))")
    words += ["space.model.lora_rank=null", "space.gradient_accumulation_steps=null", "derive.model.lora_alpha=null"]
    rooms.mkdir(parents=True, exist_ok=True)
    return creation.create_room(freeze(compose_config(words), "s"), 40)


def controller(room: Room, listener: Quiet, mode: Mode = Mode.RUN) -> Controller:
    settings = load_settings(room)
    study = session.open_study(room, settings)
    workers = backends.worker_count(settings)
    env = {"STEP_SECONDS": STEP_SECONDS, **settings.queue.env}
    dispatcher: FastDispatcher | SlurmDispatcher | LaunchDispatcher
    channel: Channel = room_channel.RoomChannel(room)
    if isinstance(settings.queue, SlurmQueue):
        dispatcher = fast_slurm(room, settings.queue)
    elif isinstance(settings.queue, LaunchQueue):
        dispatcher = fast_launch(room, settings, settings.queue)
        channel = wandbchannel.make_channel(room, dispatcher)
    else:
        dispatcher = FastDispatcher(room, (), 1, settings.queue.trials_per_worker or 0, env=env)
    return Controller(
        ports=Ports(study, channel, dispatcher, session.BootClock()),
        limits=settings.limits(workers),
        spec=lambda t, a, w: trial_spec(settings, study.params(t), AttemptId(t, a, w), stopped=stopped_runs(room)),
        listener=listener,
        mode=lambda: mode,
        created=session.created_at(settings),
        poll_seconds=0.005,
        ledger=RoomLedger(room),
    )


def fast_slurm(room: Room, queue: SlurmQueue) -> SlurmDispatcher:
    """The SLURM dispatcher, submitting workers that need no torch."""
    env = {"STEP_SECONDS": STEP_SECONDS, **queue.env}
    seconds = queue.timeout_min * 60 - queue.slurm_signal_delay_s
    options = {"trials": queue.trials_per_worker or 0, "idle_seconds": 20, "seconds": seconds, "env": env}
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
        return controller(room, Quiet(), mode).run()


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
                controller(room, Quiet(die_after)).run()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the controller failed by itself"
    return not os.WIFSIGNALED(status)


def die_at_write(count: int) -> Callable[[], None]:
    """Make this process kill itself right before or right after its count-th durable act, alternately.

    Durable acts are whole files, lines of the study's journal, and the start of a process.
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
        write = wrap(trainer_room.write_atomic)
        for module in (
            trainer_room,
            room_channel,
            local,
            slurm_dispatch,
            launch_dispatch,
            wandbchannel,
            evaluation_controller,
        ):
            module.write_atomic = write  # type: ignore[attr-defined]
        JournalFileBackend.append_logs = wrap(JournalFileBackend.append_logs)  # type: ignore[method-assign, assignment]
        for name in ("push", "stop", "configure", "delete_item"):
            setattr(FakeLaunchApi, name, wrap(getattr(FakeLaunchApi, name)))
        subprocess.Popen = wrap(subprocess.Popen)  # type: ignore[misc, assignment]

    return install


def wait_for_workers(room: Room, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while any(held(room.worker(name).lock) for name in room.workers()):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.01)


def tell_counts(room: Room) -> Counter[int]:
    """How often the journal says that each trial ended, by Optuna's internal id."""
    told: Counter[int] = Counter()
    for log in JournalFileBackend(str(journal_path(room))).read_logs(0):
        if log.get("op_code") == 6 and optuna.trial.TrialState(log["state"]).is_finished():
            told[log["trial_id"]] += 1
    return told


def check_ledger(room: Room) -> None:
    """No trial was trained by two processes at the same time, and no attempt was trained twice."""
    lines = (room.root / "ledger").read_text().splitlines()
    open_now: dict[str, tuple[str, str]] = {}
    begun: Counter[tuple[str, str]] = Counter()
    for line in lines:
        what, trial, number, pid = line.split()
        if what == "begin":
            begun[trial, number] += 1
            if trial in open_now:
                assert not Path(f"/proc/{open_now[trial][1]}").exists() or open_now[trial][1] != pid
                assert open_now[trial][0] != number, f"attempt {number} of trial {trial} began twice"
            open_now[trial] = (number, pid)
        elif open_now.get(trial, ("", ""))[0] == number:
            del open_now[trial]
    assert max(begun.values()) == 1


def check_sweep(room: Room, trials: int) -> None:
    """Everything that must hold of a finished sweep, however often its controller died."""
    settings: Settings = load_settings(room)
    state = open_reader(room).state()
    assert [row.number for row in state.rows] == list(range(trials))
    assert all(row.state in ("complete", "pruned") for row in state.rows), [(r.number, r.state) for r in state.rows]
    assert all(count == 1 for count in tell_counts(room).values())
    study = optuna.load_study(study_name=settings.name, storage=session.reading_storage(room, settings))
    for row, trial in zip(state.rows, study.trials, strict=True):
        reported = {report.milestone: report.loss for report in row.reports}
        assert trial.intermediate_values.items() <= reported.items()
        if row.state == "complete":
            assert trial.intermediate_values == reported, "no report is lost"
            assert sorted(reported) == [1, 2, 3, 4]
    check_ledger(room)
    stopped = {entry.trial for entry in read_ledger(room) if entry.ruling == "stop"}
    assert not stopped & {row.number for row in state.rows if row.state == "complete"}, "a stop stands"
    rulings = Counter((entry.trial, entry.ruling, entry.milestone) for entry in read_ledger(room) if entry.milestone)
    assert all(count == 1 for count in rulings.values()), "each verdict is kept once"
