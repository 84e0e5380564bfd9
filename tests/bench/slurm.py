"""Sweeps on a SLURM cluster: `python -m tests.bench.slurm [--only a,b,c,d] [--launcher-python PATH] [--json OUT]`.

Brings up a real cluster of virtual nodes on this machine (`tests/slurm/cluster.py`; as root) and measures on it:

a. submit to first step: from when `sweep run` has submitted its worker's job to the first line in `steps.jsonl`, split
   at the job's start and the worker's first beat; a sweep of one trial on one worker, `--repeat` times;
b. prune to stop: from the controller's `stop` file to the trial's `outcome.json`, for all pruned trials of a sweep,
   beside the time between two reports of that sweep;
c. scheduler calls: every squeue, sacct, scontrol, sbatch and scancel while that sweep lasts, with the queue's default
   `query_seconds`;
d. many short trials: `--trials` of them on `--workers` warm workers against hydra-submitit-launcher, which runs the
   same trials as one job array with as many at once, each job training through torchtune's own LoRA recipe.

Only `d` needs hydra-submitit-launcher, in an environment of its own (`--launcher-python`, or LAUNCHER_PYTHON).

Invariants: the cluster is made for this run and gone after it; a ratio compares two arms of one run. What has been
measured is printed and written at once. Nothing is asserted of a duration.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.bench import machine
from tests.bench.clocks import ArmFailed
from tests.bench.slurm_calls import calls_section
from tests.bench.slurm_lab import Lab, lab
from tests.bench.slurm_launcher import HOW_TO_MAKE_ONE, launcher_section
from tests.bench.slurm_sweep import Swept, prune_section, swept
from tests.bench.slurm_times import first_step_section
from tests.slurm.cluster import missing

PARTS = "abcd"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def number(name: str, default: int, text: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default {default})")

    parser.add_argument("--only", default=",".join(PARTS), help=f"parts (default {','.join(PARTS)})")
    number("--repeat", 5, "a: repetitions")
    number("--sweep-trials", 30, "b, c: trials of the sweep that prunes")
    number("--sweep-workers", 4, "b, c: its workers")
    number("--trials", 200, "d: short trials")
    number("--workers", 16, "d: jobs at once, of either arm")
    number("--micro-batches", 12, "d: optimizer steps of a trial")
    number("--nodes", 4, "nodes of the cluster")
    number("--cpus", 8, "processors of a node, as SLURM counts them")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument(
        "--launcher-python", default=os.environ.get("LAUNCHER_PYTHON", ""), help=f"d: {HOW_TO_MAKE_ONE}"
    )
    args = parser.parse_args()
    args.parts = [part.strip() for part in args.only.split(",") if part.strip()]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--only={args.only}: there is no part {unknown.pop()}; there are {', '.join(PARTS)}")
    if args.workers > args.nodes * args.cpus:
        parser.error(f"--workers={args.workers}: the cluster runs {args.nodes * args.cpus} jobs at once")
    if "d" in args.parts and not args.launcher_python:
        parser.error(f"d needs --launcher-python or LAUNCHER_PYTHON: {HOW_TO_MAKE_ONE}")
    if os.geteuid() != 0 or (packages := missing()):
        parser.error(f"a cluster starts as root only, and needs {' '.join(packages) if os.geteuid() == 0 else 'root'}")
    return args


def measure(parts: Sequence[str], args: argparse.Namespace, cluster: Lab) -> int:
    """Measure the parts, print each and write all so far to --json; 1 where one of them failed."""
    results: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(args).items()}, "parts": {}}
    sweeps: list[Swept] = []

    def pruning() -> Swept:
        """The one sweep that b and c look at."""
        if not sweeps:
            sweeps.append(swept(cluster, args.sweep_trials, args.sweep_workers))
        return sweeps[0]

    sections: Mapping[str, Callable[[], tuple[str, dict[str, Any]]]] = {
        "a": lambda: first_step_section(cluster, args.repeat),
        "b": lambda: prune_section(pruning()),
        "c": lambda: calls_section(cluster.calls, pruning()),
        "d": lambda: launcher_section(cluster, args),
    }
    failed = False
    for part in parts:
        load = os.getloadavg()[0]
        try:
            text, numbers = sections[part]()
        except ArmFailed as error:
            failed = True
            print(f"\n{part} FAILED: {error}", flush=True)
            continue
        results["parts"][part] = {**numbers, "load_average_before": load}
        print(f"\n{text}\n(load average before: {load:.1f})", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    return 1 if failed else 0


def main() -> int:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is taken down
    print(f"{machine()}; a SLURM cluster of {args.nodes} virtual nodes with {args.cpus} CPUs each", flush=True)
    with lab(args.nodes, args.cpus) as cluster:
        return measure(args.parts, args, cluster)


if __name__ == "__main__":
    sys.exit(main())
