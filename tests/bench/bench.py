"""What `dispatch.py` and `gpu_dispatch.py` share: their options, and the run over arms and repetitions.

Invariants: arms run one after another. What has been measured is printed and written at once, so that a run that
is cut short loses only what it had not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.arms import ARMS, Job, prepare
from tests.bench.clocks import ArmFailed
from tests.bench.results import Measured, ratio_lines, ratios, sameness, table

PACKAGES = ("torch", "torchtune", "optuna")


def add_options(parser: argparse.ArgumentParser, trials: int, workers: int) -> None:
    parser.add_argument("--trials", type=int, default=trials, help=f"default {trials}")
    parser.add_argument("--workers", type=int, default=workers, help=f"slots of every arm (default {workers})")
    parser.add_argument("--only", default=",".join(ARMS), help=f"arms, in this order (default {','.join(ARMS)})")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions; medians are printed (default 1)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a further override of `sweep run`"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument(
        "--ray-python", default=os.environ.get("RAY_PYTHON", ""), help="Python of Ray's environment, else RAY_PYTHON"
    )


def wanted_arms(args: argparse.Namespace) -> list[str]:
    """The arms of --only.

    Raises:
        SystemExit: one of them does not exist.
    """
    arms = [arm.strip() for arm in args.only.split(",") if arm.strip()]
    if unknown := set(arms) - set(ARMS):
        raise SystemExit(f"--only={args.only}: there is no arm {unknown.pop()}; there are {', '.join(ARMS)}")
    return arms


def measure(job: Job, arms: Sequence[str], args: argparse.Namespace) -> int:
    """Run the arms, print their table and ratios, and write them to --json.

    Returns:
        The exit code: 1 where an arm failed, which is then left out from there on.
    """
    prepared = prepare(job)
    repetitions: list[dict[str, Measured]] = []
    failed: set[str] = set()
    for number in range(args.repeat):
        repetitions.append({})
        for arm in [arm for arm in arms if arm not in failed]:
            scratch = job.scratch / f"{arm}-{number}"
            try:
                repetitions[-1][arm] = ARMS[arm](prepared, scratch)
            except ArmFailed as error:
                failed.add(arm)
                print(f"repetition {number + 1}, {arm} FAILED: {error}", flush=True)
                continue
            print(f"repetition {number + 1}, {arm}: {repetitions[-1][arm].seconds:.1f} s", flush=True)
            if args.json:
                args.json.write_text(json.dumps(_to_json(args, repetitions), indent=1))
            shutil.rmtree(scratch)
    whole = _whole(repetitions)
    print(f"\n{machine()}; {job.trials} trials, {job.workers} slots, {args.repeat} repetitions\n")
    print(table(whole))
    print(f"\n{ratio_lines(ratios(whole))}\n{sameness(whole[-1])}", flush=True)
    return 1 if failed else 0


def _to_json(args: argparse.Namespace, repetitions: list[dict[str, Measured]]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "options": {key: str(value) for key, value in vars(args).items()},
        "repetitions": [[run.to_json() for run in repetition.values()] for repetition in repetitions],
        "ratios": ratios(_whole(repetitions)),
    }


def _whole(repetitions: list[dict[str, Measured]]) -> list[dict[str, Measured]]:
    """The repetitions in which every arm was measured that was measured in any."""
    arms = max((repetition.keys() for repetition in repetitions), key=len)
    return [repetition for repetition in repetitions if repetition.keys() == arms]


def machine() -> str:
    """Processor, cores and versions, in a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {packages}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
