"""Workers without torch, which obey a room as `trainer.worker` does.

`python -m tests.helpers.fakes --room ROOM --worker NAME …` is such a worker. It "trains" a trial in a few hundredths of
a second: its losses are a function of the learning rate and the seed. It leaves marks (`tests.helpers.executions`), so
that a test can see whether two processes ever trained one trial at the same time.

Two files in a room change what its workers do:
- `hold`: while it exists, trials wait after their first milestone.
- `signals.json`: by worker a signal and a number. The worker sends itself the signal before its N-th act; acts are
  reports, checkpoints and outcomes. After SIGSTOP it continues by itself.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from sweep.queues.local.dispatcher import LocalDispatcher
from tests.helpers.executions import executions_dir, marked
from trainer.contract import FailureKind, Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode, encode
from trainer.entry.slurm_job import END_SIGNALS, run_job
from trainer.room import AttemptDir, Room, append_line, read_json, read_text, write_atomic
from trainer.store.worker_sync import Pace, synced_room

MILESTONES = 4
HOLD = "hold"
SIGNALS = "signals.json"
IGNORES_FENCE = "IGNORES_FENCE"  # in the environment: a fault, the worker trains on behind its fence
IDLE_SECONDS = 20.0
PAUSE_SECONDS = 0.02
STOPPED_SECONDS = 0.3
FAST = Pace(look=0.005, poll=0.02, beat=0.1, report=0.0, bulk=0.0, last=30.0)


def curve(spec: TrialSpec, milestone: int) -> float:
    """Loss of a trial at a milestone: best near a learning rate of 1e-3, falling with the milestones.

    Another seed changes it a little, so that a final has another value than the trial that it repeats.
    """
    distance = abs(math.log10(float(spec.config["optimizer"]["lr"])) + 3)
    return float(1 + distance + 2 / milestone + 0.001 * (int(spec.config.get("seed") or 0) % 10))


class FastDispatcher(LocalDispatcher):
    """The local dispatcher, starting workers that need no torch."""

    def _command(self, name: str) -> list[str]:
        command = [sys.executable, "-m", "tests.helpers.fakes", "--room", str(self.room.root), "--worker", name]
        command += ["--trials", str(self.trials), "--slots", str(self.slots)]
        return [*command, "--step-seconds", self.env.get("STEP_SECONDS", "0.01")]


@dataclass(slots=True)
class StoreDispatcher(FastDispatcher):
    """Starts workers that reach their sweep's room through an object store only.

    Args:
        room: a directory for what the queue itself knows of its workers.
        url: of the sweep's room in the store.
    """

    url: str = ""

    def _command(self, name: str) -> list[str]:
        return [*FastDispatcher._command(self, name), "--store", self.url, "--token", self.token]


def serve_fast(room: str, worker: str, options: Mapping[str, Any]) -> None:
    """What a SLURM job of the tests runs in place of `trainer.entry.slurm_job.serve`."""
    run_job(room, worker, options, _serve_fast)


def _serve_fast(room: Room, name: str, options: Mapping[str, Any], ends_at: float) -> tuple[str, bool]:
    step_seconds, slots = float(os.environ.get("STEP_SECONDS", "0.01")), max(1, int(options.get("slots", 1)))
    worker = FastWorker(room, name, options["trials"], step_seconds, ends_at, slots)
    worker.handle_signals()
    worker.run()
    return worker.end_reason or "it is done", worker.signalled


def wait_for_end(root: str, token: str) -> None:
    """What the job of a controller runs in a test of its submission: it waits until `end` is in the room."""
    while not (Path(root) / "end").exists():
        time.sleep(0.1)


@dataclass
class FastWorker:
    """A worker of a room that trains nothing.

    Args:
        trials: attempts after which it ends; 0: no limit.
        step_seconds: seconds between two milestones of an attempt.
        ends_at: when the time limit of its job is near, in seconds on the monotonic clock.
        slots: attempts side by side.
        marks: the directory of the marks of its executions; None: that of its room.
    """

    room: Room
    name: str
    trials: int
    step_seconds: float
    ends_at: float = math.inf
    slots: int = 1
    signalled: bool = False
    marks: Path | None = None
    _acts: int = field(default=0, init=False)
    _taken: set[tuple[int, int]] = field(default_factory=set, init=False)

    def handle_signals(self) -> None:
        """End at a signal as a worker does: its trials stop with a checkpoint."""
        for number in END_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    @property
    def end_reason(self) -> str:
        """Why it must end; empty if it need not."""
        limit = "the time limit of its job is near" if time.monotonic() > self.ends_at else ""
        return "it was told to end" if self.signalled else limit

    def run(self) -> None:
        """Serve the room until the worker is drained, told to end, has done its trials, or has been idle for long."""
        files = self.room.worker(self.name)
        files.lock.write_text(f"{os.getpid()}\n")
        running: dict[tuple[int, int], Iterator[None]] = {}
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_SECONDS:
            write_atomic(files.beat, str(time.monotonic_ns()))
            drained = files.drain.exists()  # before the inbox: what is in it by then is still done
            for task in self._new_tasks(self.slots - len(running)):
                self._taken.add(task)
                running[task] = self._attempt(*task)
                self._advance(running, task)
            if running:
                time.sleep(self.step_seconds)
                for task in list(running):
                    self._advance(running, task)
                idle_since = time.monotonic()
            elif self.end_reason:
                self._give_back()
                return
            elif drained or (self.trials and len(self._taken) >= self.trials):
                return
            else:
                time.sleep(PAUSE_SECONDS)

    def _new_tasks(self, free: int) -> list[tuple[int, int]]:
        if self.end_reason:
            return []
        if self.trials:
            free = min(free, self.trials - len(self._taken))
        return [task for task in self.room.worker(self.name).assignments() if task not in self._taken][:free]

    def _advance(self, running: dict[tuple[int, int], Iterator[None]], task: tuple[int, int]) -> None:
        if next(running[task], True):  # an attempt yields None until it ends
            del running[task]

    def _give_back(self) -> None:
        """An assignment that came too late is no lost attempt."""
        for task in self.room.worker(self.name).assignments():
            if task not in self._taken:
                late = Outcome(OutcomeKind.STOPPED, "its worker ended", cause=StopCause.PREEMPTED)
                write_atomic(self.room.attempt(*task).outcome, encode(late))

    def _attempt(self, trial: int, number: int) -> Iterator[None]:
        """One attempt, up to its next milestone at each step."""
        files = self.room.attempt(trial, number)
        if files.outcome.exists():
            return
        spec = decode(TrialSpec, read_text(files.spec) or "")
        with marked(self.marks or executions_dir(self.room.root), trial, number):
            outcome = yield from (self._evaluate(spec) if spec.evaluate else self._train(spec, files))
        self._act()
        write_atomic(files.outcome, encode(outcome))

    def _evaluate(self, spec: TrialSpec) -> Generator[None, None, Outcome]:
        """Evaluate an adapter; it fails for a trial whose number is in BAD_EVALUATIONS."""
        yield
        if str(spec.trial) in os.environ.get("BAD_EVALUATIONS", "").split(","):
            return Outcome(OutcomeKind.FAILED, "no luck", failure=FailureKind.PASSING)
        if self.end_reason:
            return Outcome(OutcomeKind.STOPPED, self.end_reason, cause=StopCause.PREEMPTED)
        return Outcome(OutcomeKind.COMPLETED, scores={"loss": curve(spec, MILESTONES)})

    def _train(self, spec: TrialSpec, files: AttemptDir) -> Generator[None, None, Outcome]:
        start = self._resume_at(spec)
        with files.reports.open("a") as reports:
            for milestone in range(min(start, MILESTONES - 1) + 1, MILESTONES + 1):  # the final report is made again
                yield
                while milestone > 1 and (self.room.root / HOLD).exists() and not self._must_end(files):
                    yield
                value = curve(spec, milestone)
                final = milestone == MILESTONES
                report = Report(milestone, milestone, milestone * 10, 0, value, 1.0, 1e-3, 1.0, 0.1, final=final)
                self._act()
                append_line(reports, encode(report))
                self._act()
                write_atomic(files.checkpoint, str(milestone))
                if files.fence.exists() and not os.environ.get(IGNORES_FENCE):
                    return Outcome(OutcomeKind.STOPPED, "fenced", cause=StopCause.CANCELLED, tokens=milestone * 10)
                if self.end_reason and not final:
                    return Outcome(
                        OutcomeKind.STOPPED, self.end_reason, cause=StopCause.PREEMPTED, tokens=milestone * 10
                    )
                text = read_text(files.stop)
                if text is not None and not final:
                    cause, _, reason = text.partition("\n")
                    return Outcome(OutcomeKind.STOPPED, reason, cause=StopCause(cause), tokens=milestone * 10)
        return Outcome(OutcomeKind.COMPLETED, tokens=MILESTONES * 10)

    def _must_end(self, files: AttemptDir) -> bool:
        fenced = files.fence.exists() and not os.environ.get(IGNORES_FENCE)
        return bool(self.end_reason) or fenced or files.stop.exists()

    def _resume_at(self, spec: TrialSpec) -> int:
        done = [read_text(self.room.attempt(spec.trial, n).resume_point()) for n in self.room.attempts(spec.trial)]
        return max((int(text) for text in done if text), default=0)

    def _act(self) -> None:
        """Send this process the signal that its room asks for before this act."""
        self._acts += 1
        name, at = (read_json(self.room.root / SIGNALS) or {}).get(self.name, ("", 0))
        if at != self._acts:
            return
        if name == "SIGSTOP" and os.fork() == 0:  # without the locks of this process
            os.closerange(3, 1024)
            time.sleep(STOPPED_SECONDS)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.Signals[name])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--step-seconds", type=float, default=0.01)
    parser.add_argument("--store", help="URL of the room in an object store; --room then names the queue's directory")
    parser.add_argument("--token", default="", help="of the sweep whose room the store holds")
    args = parser.parse_args()
    options = {"slots": max(1, args.slots)}
    if args.store is None:
        worker = FastWorker(Room(args.room), args.worker, args.trials, args.step_seconds, **options)
        worker.handle_signals()
        worker.run()
        return
    Room(args.room).worker(args.worker).lock.write_text(f"{os.getpid()}\n")
    with tempfile.TemporaryDirectory() as copy:
        Room(Path(copy)).worker(args.worker).path.mkdir(parents=True)
        with synced_room(args.store, Path(copy), args.worker, FAST, args.token) as room:
            marks = executions_dir(args.room)
            FastWorker(room, args.worker, args.trials, args.step_seconds, marks=marks, **options).run()


if __name__ == "__main__":
    main()
