"""Part a of `python -m tests.bench.slurm`: from a submission to its first optimizer step.

A sweep of one trial on one worker, each time in a new room, on an idle cluster. The files that mark its way are looked
for every few milliseconds, each from when the one before it was there.

Invariant: nothing of the measured programs is changed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sweep.queues.slurm.submit import job_log
from tests.bench.clocks import ArmFailed
from tests.bench.slurm_lab import Lab
from tests.helpers.cli import SMALL
from trainer.room import Room, read_json

LOOK_SECONDS = 0.004
WORDS = ("queue=slurm_cpu", "queue.workers=1", "pruner=none", "sampler=random", "search.trials=1")
# What lies between two marks.
SPANS = (
    "`sweep run` starts → worker written down",
    "→ its job has an id (sbatch, submitit)",
    "→ the job runs (its log appears)",
    "→ the worker's process speaks (srun, Python, submitit)",
    "→ it is ready (torch imported, first beat)",
    "→ first step",
)
SUBMITTED = 2  # the mark from which on the scheduler has the job


def first_step_section(lab: Lab, repeat: int) -> tuple[str, dict[str, Any]]:
    runs = []
    for number in range(repeat):
        runs.append(first_step(lab, f"first-{number}"))
        marks = runs[-1]
        print(f"a, repetition {number + 1}: submitted to first step {marks[-1] - marks[SUBMITTED]:.2f} s", flush=True)
    spans = {name: [run[i + 1] - run[i] for run in runs] for i, name in enumerate(SPANS)}
    total = [run[-1] - run[SUBMITTED] for run in runs]
    lines = [
        f"### a. Submit to first step: median {statistics.median(total):.2f} s of {repeat} repetitions\n",
        "| span | median s | lowest | highest |",
        "|---|---|---|---|",
    ]
    for name, values in {**spans, "**submitted → first step**": total}.items():
        lines.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    return "\n".join(lines), {"spans_seconds": spans, "submitted_to_first_step_seconds": total}


def first_step(lab: Lab, name: str) -> list[float]:
    """Seconds since the epoch: the command's start, and the end of each span.

    Raises:
        ArmFailed: the sweep failed.
    """
    room, log = Room(lab.rooms / name), lab.scratch / f"{name}.log"
    words = [word for word in SMALL if not word.startswith(("queue.threads", "search.trials"))]
    command = [sys.executable, "-m", "sweep.cli", "run", *words, *WORDS, f"name={name}"]
    with log.open("wb") as output:
        marks = [time.time()]
        process = subprocess.Popen(command, env=lab.env(), stdout=output, stderr=subprocess.STDOUT)
    try:
        for reached in _conditions(room):
            while not reached():
                if process.poll() is not None:
                    raise ArmFailed(f"the sweep ended before its first step:\n{_tail(log)}")
                time.sleep(LOOK_SECONDS)
            marks.append(time.time())
        if process.wait() != 0:
            raise ArmFailed(f"the sweep failed with code {process.returncode}:\n{_tail(log)}")
    finally:
        process.kill()
        process.wait()
    return marks


def _conditions(room: Room) -> Iterator[Callable[[], object]]:
    """What ends each span; a condition is asked for only when the one before it holds."""
    worker = room.worker("w0001")
    yield worker.job.exists

    def job() -> str:
        return str((read_json(worker.job) or {}).get("id", ""))

    yield job
    log = job_log(room, job())
    yield log.exists
    yield lambda: b"worker w0001 starts" in log.read_bytes()
    yield worker.beat.exists
    steps = room.attempt(0, 1).steps
    yield lambda: steps.exists() and steps.stat().st_size


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
