"""Rooms of sweeps whose workers train made-up curves at once, in this process; and what the curves say.

The controller, the study, the channel and every file are those of any sweep; only the workers are played here. So a
room is made in a second, and a controller can go on with any copy of it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.controller.disk import RoomDisk
from sweep.controller.ledger import RoomLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.controller.room_channel import RoomChannel
from sweep.model.effects import Finish
from sweep.model.facts import Job
from sweep.model.states import JobState, Mode
from sweep.wiring import session
from sweep.wiring.rooms import load_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import spec_factory
from tests.helpers.hand_played import HandClock, HandDispatcher
from tests.helpers.kill_points import make_room
from trainer.contract import Outcome, OutcomeKind, Report, encode, read_stop
from trainer.files import LineFile
from trainer.room import Room, WorkerDir, write_atomic

MILESTONES = 4
ROUND_SECONDS = 5.0
# A room whose workers lost everything is given up after so many rounds of nothing.
MAX_ROUNDS = 400
KINDS = ("finished", "halfway", "paused", "finals")


def make(kind: str, rooms: Path) -> Room:
    """A room of this kind, one of `KINDS`, below a directory of rooms."""
    words = {"paused": ["pruner=asha"], "halfway": ["pruner=asha"], "finals": ["search.finalists=2", "search.seeds=2"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_ROOMS", str(rooms))
        room = make_room(rooms, "search.trials=8", "queue.workers=2", *words.get(kind, ["pruner=none"]))
    rounds = {"halfway": 9, "paused": 25}.get(kind, MAX_ROUNDS)
    Played(room).run(rounds)
    return room


def loss_of(trial: int, milestone: int) -> float:
    """The objective that a trial reports at a milestone."""
    return 2.0 + random.Random(trial).random() + 1.0 / milestone


class Played:
    """A controller over a room, with workers that train as soon as they are given something.

    Raises:
        SweepError: as the controller's own process would, when the study is opened or in a round.
    """

    def __init__(self, room: Room, mode: Callable[[], Mode] = lambda: Mode.RUN) -> None:
        settings = load_settings(room)
        study = session.open_study(room, settings)
        self.room, self.clock, self.dispatcher, self._beat = room, HandClock(), HandDispatcher(), 0
        earlier = {name: Job(0, JobState.GONE) for name in room.workers()}
        self.dispatcher.jobs.update(earlier)
        disk = RoomDisk(room, self.clock)
        self.controller = Controller(
            ports=Ports(study, RoomChannel(room), self.dispatcher, self.clock, disk),
            limits=settings.limits(settings.queue.workers or 1),
            spec=spec_factory(settings, study.params, study.seed_of, set),
            listener=Silent(),
            mode=mode,
            created=self.clock.now(),
            ledger=RoomLedger(room),
        )

    def run(self, rounds: int = MAX_ROUNDS) -> Finish | None:
        """Rounds until the controller ends; None if it has not ended after so many."""
        for _ in range(rounds):
            effects = self.controller.step()
            if effects and isinstance(effects[-1], Finish):
                return effects[-1]
            self.clock.time += ROUND_SECONDS
            self._work()
        return None

    def _work(self) -> None:
        """Each worker goes on by a milestone with each of its attempts."""
        self._beat += 1
        for name, job in list(self.dispatcher.jobs.items()):
            if job.state is not JobState.RUNNING:
                continue
            files = self.room.worker(name)
            write_atomic(files.beat, str(self._beat), durable=False)
            busy = [self._train(trial, attempt) for trial, attempt in files.assignments()]
            if files.drain.exists() and not any(busy):
                self._end(files, name, job)

    def _train(self, trial: int, attempt: int) -> bool:
        """Go on with an attempt by one milestone; whether it had not ended."""
        files = self.room.attempt(trial, attempt)
        if files.outcome.exists():
            return False
        stop = read_stop(files.stop)
        if isinstance(stop, tuple):
            write_atomic(files.outcome, encode(Outcome(OutcomeKind.STOPPED, stop[1], cause=stop[0])))
            return True
        done = sum(self._count(trial, number) for number in range(1, attempt + 1))
        milestone = min(done + 1, MILESTONES)
        final = milestone == MILESTONES
        try:
            file = LineFile(files.reports)
            loss = loss_of(trial, milestone)
            file.append(encode(Report(milestone, milestone, milestone * 10, 0, loss, 1.0, 1e-3, 1.0, 0.1, final=final)))
            file.close()
            if final:
                write_atomic(files.outcome, encode(Outcome(OutcomeKind.COMPLETED)))
        except OSError:  # its files are damaged, so a real worker would end it
            return False
        return True

    def _count(self, trial: int, attempt: int) -> int:
        reports = self.room.attempt(trial, attempt).reports
        return reports.read_bytes().count(b"\n") if reports.is_file() else 0

    def _end(self, files: WorkerDir, name: str, job: Job) -> None:
        self.dispatcher.jobs[name] = Job(job.place, JobState.GONE)


def copy_room(source: Room, rooms: Path) -> Room:
    """A copy of a room below another directory of rooms, under the same name."""
    rooms.mkdir(parents=True, exist_ok=True)
    to = rooms / source.root.name
    shutil.copytree(source.root, to, symlinks=True)
    return Room(to.resolve())
