"""A worker without torch, and dispatchers that start it.

`python -m tests.helpers.fakes --room ROOM --worker NAME …` is the worker. It obeys the room as `trainer.worker` does,
and takes a few hundredths of a second for a trial, whose losses are a function of its learning rate. It appends the
begin and the end of each attempt to `<room>/ledger`, so that a test sees whether two attempts of a trial overlapped.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sweep.queues.local.dispatcher import LocalDispatcher
from trainer.contract import FailureKind, Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode, encode
from trainer.entry.slurm_job import END_SIGNALS, run_job
from trainer.room import AttemptDir, Room, append_line, read_text, write_atomic
from trainer.store.worker_sync import Pace, synced_room

MILESTONES = 4
HOLD = "hold"  # a file of a room: while it exists, trials wait after their first milestone
FAST = Pace(look=0.005, poll=0.02, beat=0.1, report=0.0, bulk=0.0, last=30.0)


def curve(spec: TrialSpec, milestone: int) -> float:
    """Loss of a trial at a milestone: best near a learning rate of 1e-3, falling with the milestones."""
    distance = abs(math.log10(float(spec.config["optimizer"]["lr"])) + 3)
    return float(1 + distance + 2 / milestone)


class FastDispatcher(LocalDispatcher):
    """The local dispatcher, starting workers that need no torch."""

    def _command(self, name: str) -> list[str]:
        command = [sys.executable, "-m", "tests.helpers.fakes", "--room", str(self.room.root), "--worker", name]
        return [*command, "--trials", str(self.trials), "--step-seconds", self.env.get("STEP_SECONDS", "0.01")]


@dataclass(slots=True)
class FarDispatcher(FastDispatcher):
    """Starts workers that reach the sweep's room through a store only; its own room holds what the queue knows."""

    url: str = ""

    def _command(self, name: str) -> list[str]:
        return [*FastDispatcher._command(self, name), "--store", self.url]


def serve_fast(room: str, worker: str, options: Mapping[str, Any]) -> None:
    """Serve a room in a SLURM job of the tests, in place of `trainer.entry.slurm_job.serve`."""
    run_job(room, worker, options, _serve_fast)


def _serve_fast(room: Room, name: str, options: Mapping[str, Any], ends_at: float) -> tuple[str, bool]:
    worker = FastWorker(room, name, options["trials"], float(os.environ.get("STEP_SECONDS", "0.01")), ends_at)
    for number in END_SIGNALS:
        signal.signal(number, worker.on_signal)
    worker.run()
    return worker.end_reason or "it is done", worker.signalled


@dataclass
class FastWorker:
    """A worker of a room that trains nothing."""

    room: Room
    name: str
    trials: int
    step_seconds: float
    ends_at: float = math.inf
    ledger: IO[str] = field(init=False)
    signalled: bool = False
    ledger_directory: Path | None = None  # of the ledger, if it is not the room

    def __post_init__(self) -> None:
        self.ledger = ((self.ledger_directory or self.room.root) / "ledger").open("a")

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    @property
    def end_reason(self) -> str:
        limit = "the time limit of its job is near" if time.monotonic() > self.ends_at else ""
        return "it was told to end" if self.signalled else limit

    def run(self) -> None:
        files = self.room.worker(self.name)
        files.lock.write_text(f"{os.getpid()}\n")
        write_atomic(files.beat, "1")
        taken: set[tuple[int, int]] = set()
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < 20:
            if self.end_reason:
                self._preempt_late(taken)
                return
            write_atomic(files.beat, str(time.monotonic_ns()))
            new = [task for task in files.assignments() if task not in taken]
            if new:
                taken.add(new[0])
                self._attempt(*new[0])
                idle_since = time.monotonic()
                if self.trials and len(taken) >= self.trials:
                    return
            elif files.drain.exists():
                return
            else:
                time.sleep(0.005)

    def _preempt_late(self, taken: set[tuple[int, int]]) -> None:
        """End the assignments that came too late as preempted, so that none counts as a lost attempt."""
        for task in self.room.worker(self.name).assignments():
            if task not in taken:
                late = Outcome(OutcomeKind.STOPPED, "its worker ended", cause=StopCause.PREEMPTED)
                write_atomic(self.room.attempt(*task).outcome, encode(late))

    def _attempt(self, trial: int, number: int) -> None:
        files = self.room.attempt(trial, number)
        if files.outcome.exists():
            return
        spec = decode(TrialSpec, read_text(files.spec) or "")
        append_line(self.ledger, f"begin {trial} {number} {os.getpid()}")
        outcome = self._evaluate(spec) if spec.evaluate else self._train(spec, files)
        append_line(self.ledger, f"end {trial} {number} {os.getpid()}")
        write_atomic(files.outcome, encode(outcome))

    def _evaluate(self, spec: TrialSpec) -> Outcome:
        """Judge an adapter; the evaluation of a trial whose number is in BAD_EVALUATIONS fails."""
        time.sleep(self.step_seconds)
        if str(spec.trial) in os.environ.get("BAD_EVALUATIONS", "").split(","):
            return Outcome(OutcomeKind.FAILED, "no luck", failure=FailureKind.PASSING)
        if self.end_reason:
            return Outcome(OutcomeKind.STOPPED, self.end_reason, cause=StopCause.PREEMPTED)
        return Outcome(OutcomeKind.COMPLETED, scores={"loss": curve(spec, MILESTONES)})

    def _train(self, spec: TrialSpec, files: AttemptDir) -> Outcome:
        start = self._resume_at(spec)
        with files.reports.open("a") as reports:
            for milestone in range(min(start, MILESTONES - 1) + 1, MILESTONES + 1):  # the final report is made again
                time.sleep(self.step_seconds)
                while milestone > 1 and (self.room.root / HOLD).exists() and not self._must_end(files):
                    write_atomic(self.room.worker(self.name).beat, str(time.monotonic_ns()), durable=False)
                    time.sleep(0.02)
                value = curve(spec, milestone)
                final = milestone == MILESTONES
                report = Report(milestone, milestone, milestone * 10, 0, value, 1.0, 1e-3, 1.0, 0.1, final=final)
                append_line(reports, encode(report))
                write_atomic(files.checkpoint, str(milestone))
                if files.fence.exists():
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
        return bool(self.end_reason) or files.fence.exists() or files.stop.exists()

    def _resume_at(self, spec: TrialSpec) -> int:
        done = [read_text(self.room.attempt(spec.trial, n).resume_point()) for n in self.room.attempts(spec.trial)]
        return max((int(text) for text in done if text), default=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--step-seconds", type=float, default=0.01)
    parser.add_argument(
        "--store", help="URL of the room, of which the worker has a copy; --room then holds what its queue knows"
    )
    args = parser.parse_args()
    if args.store is None:
        FastWorker(Room(args.room), args.worker, args.trials, args.step_seconds).run()
        return
    Room(args.room).worker(args.worker).lock.write_text(f"{os.getpid()}\n")
    with tempfile.TemporaryDirectory() as copy:
        Room(Path(copy)).worker(args.worker).path.mkdir(parents=True)
        with synced_room(args.store, Path(copy), args.worker, FAST) as room:
            FastWorker(room, args.worker, args.trials, args.step_seconds, ledger_directory=args.room).run()


if __name__ == "__main__":
    main()
