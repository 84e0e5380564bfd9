"""Whether a warm worker's memory and open files stay flat over many real trials, and those of its controller.

    python -m tests.bench.soak_worker [--trials 500] [--slots 1]

Runs `sweep run` on the embedded base with one worker, which trains every trial. Prints memory and open files of both
processes at ten checkpoints, then their growth for each trial between the second checkpoint and the last.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.cli import SMALL
from trainer.room import Room

CHECKPOINTS = 10
PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """Resident memory in bytes, and open files, of one process."""

    memory: int
    files: int


def usage(pid: int) -> Usage:
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return Usage(pages * resource.getpagesize(), len(list((PROC / str(pid) / "fd").iterdir())))


def holder(lock: Path) -> int:
    """The process that has a lock file open; of several, that with the most processor time, since others only look."""
    holding = []
    for entry in PROC.iterdir():
        try:
            if entry.name.isdigit() and any(file.readlink() == lock for file in (entry / "fd").iterdir()):
                user, system = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
                holding.append((int(user) + int(system), int(entry.name)))
        except OSError:
            continue
    return max(holding)[1]


def ended(room: Room) -> int:
    """How many trials have an outcome."""
    return sum(1 for _ in room.root.glob("trials/*/*/outcome.json"))


def run(rooms: Path, trials: int, slots: int) -> list[tuple[int, Usage, Usage]]:
    """One sweep; at each checkpoint, how many trials had ended, and the usage of the controller and of the worker."""
    words = (f"search.trials={trials}", f"queue.slots={slots}", "queue.workers=1", "pruner=none", "sampler=random")
    command = [sys.executable, "-P", "-m", "sweep.cli", "run", *SMALL, *words, "name=soak"]
    env = {**os.environ, "SWEEP_ROOMS": str(rooms), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    room, usages, every = Room(rooms / "soak"), list[tuple[int, Usage, Usage]](), max(1, trials // CHECKPOINTS)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as controller:
        while controller.poll() is None:
            time.sleep(0.5)
            count = ended(room)
            if count >= every * (len(usages) + 1) and controller.poll() is None:
                try:
                    usages.append((count, usage(controller.pid), usage(holder(room.worker("w0001").lock))))
                except (OSError, ValueError):  # it has ended meanwhile
                    break
                print(line(*usages[-1]), flush=True)
        controller.wait()
    assert controller.returncode == 0
    assert len(room.workers()) == 1, "one worker trains all trials"
    return usages


def line(count: int, controller: Usage, worker: Usage) -> str:
    shown = (f"{it.memory / 2**20:7.1f} MiB {it.files:4} files" for it in (controller, worker))
    return f"{count:6} trials   controller {next(shown)}   worker {next(shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--slots", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        usages = run(Path(folder), args.trials, args.slots)
    if len(usages) > 2:
        (first, *before), (last, *after) = usages[1], usages[-1]
        for name, was, now in zip(("controller", "worker"), before, after, strict=True):
            growth = (now.memory - was.memory) / (last - first)
            print(
                f"{name}: {growth:.0f} bytes and {now.files - was.files} files more for each of {last - first} trials"
            )


if __name__ == "__main__":
    main()
