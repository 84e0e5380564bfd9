"""From a job's push to its trial's first step, through the unmodified `wandb launch-agent`, over each channel.

    python -m tests.bench.launch_start [--trials N]

The server is the stand-in on this machine, the agent W&B's own (it polls every ten seconds), the job a process that the
agent starts here. One trial at a time, on the embedded base, each a job of its own. Times are wall clock:

    taken    push -> the agent has leased the item
    started  -> the job has opened its run (the agent's start of a process, `import wandb`)
    step     -> the run's first row, logged after the first optimizer step (`import torch`, the base, the first batch)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.cli import command
from tests.helpers.launch_sweeps import SMALL, make_job
from tests.standin.model import Run
from tests.standin.plugin import environment, here
from tests.standin.server import StandIn

SWEEP = (
    "queue=launch_local_process",
    "queue.name=lab",
    "queue.job=team/lab/sweep:latest",
    "queue.workers=1",
    "recipe.overrides.epochs=1",
    "pruner=none",
)


def measure(channel: str, trials: int, folder: Path) -> list[tuple[float, float, float]]:
    """Seconds of each trial: taken, started, step."""
    with StandIn(folder / "server") as standin:
        env = {**environment(standin), "SWEEP_ROOMS": str(folder / "rooms"), "OMP_NUM_THREADS": "1"}
        env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
        with here(standin) as wandb:
            wandb.Api().create_run_queue("lab", "local-process", entity="team", prioritization_mode="V0")
        make_job(folder / "job", env)
        words = ["launch-agent", "-q", "lab", "-e", "team"]
        with (folder / "agent.log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "wandb", *words], env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )
            try:
                more = ("name=s", f"queue.channel={channel}", f"search.trials={trials}")
                subprocess.run(command("run", *SMALL, *SWEEP, *more), env=env, check=True, stdout=log, stderr=log)
            finally:
                agent.terminate()
                agent.wait()
        runs = [run for run in standin.runs.values() if run.job_type == "trial"]
        return [_times(standin, run) for run in sorted(runs, key=lambda run: run.id)]


def _times(standin: StandIn, run: Run) -> tuple[float, float, float]:
    (item,) = [item for item in standin.items if item.run_id == run.id]
    assert item.leased is not None
    first = min(float(row["_timestamp"]) for row in run.history)
    return item.leased - item.pushed, run.created - item.leased, first - run.created


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    args = parser.parse_args()
    print(f"{'channel':8} {'taken':>8} {'started':>8} {'step':>8} {'push to first step':>20}   (medians, seconds)")
    for channel in ("room", "wandb"):
        with tempfile.TemporaryDirectory() as folder:
            delays = measure(channel, args.trials, Path(folder))
        medians = [statistics.median(column) for column in zip(*delays, strict=True)]
        total = statistics.median(sum(row) for row in delays)
        print(f"{channel:8} {medians[0]:8.1f} {medians[1]:8.1f} {medians[2]:8.1f} {total:20.1f}   {len(delays)} jobs")


if __name__ == "__main__":
    main()
