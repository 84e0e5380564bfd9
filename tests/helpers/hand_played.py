"""A sweep whose worker and whose clock a test plays by hand: one real controller over a real room and study.

played = HandPlayed(rooms)
played.begin()                                # a worker starts, is ready and gets its first trial
played.report(1, 2.9); played.report(2, 2.5, final=True)
played.end(Outcome(OutcomeKind.COMPLETED))
played.rounds()                               # the controller observes, decides and acts until nothing changes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweep.controller.disk import RoomDisk
from sweep.controller.ledger import RoomLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Ports, WorkerSpec
from sweep.controller.room_channel import RoomChannel
from sweep.model.effects import Effect
from sweep.model.facts import Job
from sweep.model.states import JobState, Mode
from sweep.search.study import OptunaStudy
from sweep.wiring import session
from sweep.wiring.rooms import load_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import spec_factory
from tests.helpers.kill_points import make_room
from trainer.contract import Outcome, Report, encode
from trainer.files import LineFile
from trainer.room import AttemptDir, Room, write_atomic

MAX_ROUNDS = 200


@dataclass
class HandClock:
    """A `Clock` that the test moves."""

    time: float = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class HandDispatcher:
    """A `Dispatcher` whose workers run until the test ends them, or until they are cancelled."""

    jobs: dict[str, Job] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        for worker in workers:
            self.jobs.setdefault(worker.name, Job(worker.place, JobState.RUNNING))

    def poll(self) -> Mapping[str, Job]:
        return dict(self.jobs)

    def cancel(self, workers: Sequence[str]) -> None:
        for name in workers:
            self.cancelled.append(name)
            self.jobs[name] = Job(self.jobs[name].place, JobState.GONE)

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        return ""


class HandPlayed:
    """See the module.

    Args:
        overrides: of the sweep; it has one worker and one trial unless they say otherwise.
    """

    def __init__(self, rooms: Path, *overrides: str) -> None:
        words = ["queue.workers=1", "search.trials=1", "pruner=none", *overrides]
        self.room: Room = make_room(rooms, *words)
        self.clock = HandClock()
        self.dispatcher = HandDispatcher()
        self.mode = Mode.RUN
        self.controller, self.study = self.restarted()
        self._beat = 0

    def restarted(self) -> tuple[Controller, OptunaStudy]:
        """A new controller over the same room, as after a crash."""
        settings = load_settings(self.room)
        study = session.open_study(self.room, settings)
        ports = Ports(study, RoomChannel(self.room), self.dispatcher, self.clock, RoomDisk(self.room, self.clock))
        self.study = study
        self.controller = Controller(
            ports=ports,
            limits=settings.limits(settings.queue.workers or 1),
            spec=spec_factory(settings, study.params, study.seed_of, set),
            listener=Silent(),
            mode=lambda: self.mode,
            created=self.clock.now(),
            ledger=RoomLedger(self.room),
        )
        return self.controller, study

    def rounds(self) -> list[Effect]:
        """Rounds at one moment, until one has no effects; returns the effects."""
        done: list[Effect] = []
        for _ in range(MAX_ROUNDS):
            effects = self.controller.step()
            if not effects:
                return done
            done += effects
        raise AssertionError(f"the controller does not come to rest: {done[-5:]}")

    def rounds_for(self, seconds: float, every: float = 10.0, beats: bool = True) -> list[Effect]:
        """Rounds at intervals, while the workers' hearts beat."""
        done: list[Effect] = []
        end = self.clock.time + seconds
        while self.clock.time < end:
            self.clock.time += every
            if beats:
                self.beat()
            done += self.rounds()
        return done

    # --- the workers --------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """The next heartbeat of every worker that lives."""
        self._beat += 1
        for name, job in self.dispatcher.jobs.items():
            if job.state is JobState.RUNNING:
                write_atomic(self.room.worker(name).beat, str(self._beat), durable=False)

    def begin(self) -> None:
        """Start workers, and let the controller assign what there is."""
        self.rounds()
        self.beat()
        self.rounds()

    def attempt(self, trial: int = 0) -> AttemptDir:
        """The last attempt of a trial."""
        return self.room.attempt(trial, self.room.attempts(trial)[-1])

    def report(self, milestone: int, loss: float, trial: int = 0, final: bool = False) -> None:
        """A report of the trial's last attempt."""
        file = LineFile(self.attempt(trial).reports)
        made = Report(milestone, milestone, milestone * 10, 0, loss, 1.0, 1e-3, 1.0, 0.1, final=final)
        file.append(encode(made))
        file.close()

    def end(self, outcome: Outcome, trial: int = 0) -> None:
        """The outcome of the trial's last attempt."""
        write_atomic(self.attempt(trial).outcome, encode(outcome))
