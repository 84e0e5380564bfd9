"""Checks that a SLURM cluster can run a sweep: commands, the request, accounting, and a node by a short job.

Invariants: each look is independent and says what it found, or raises what is wrong with it; nothing is left behind,
neither a job nor a file.
"""

from __future__ import annotations

import dataclasses
import getpass
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sweep.config.queues import SlurmQueue
from sweep.errors import GiveUp, RetryLater, SweepError
from sweep.queues.slurm import commands
from sweep.queues.slurm.submit import (
    batch_script,
    check_function,
    executor_parameters,
    job_log,
    submit_calls,
    submitit_dir,
)
from trainer.room import Room, hold, read_json, read_text, write_atomic

NEEDED = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
WAIT_SECONDS = 120.0  # for a job that has not begun
RUN_MINUTES = 5  # for one that has: a first import of torch over a network takes minutes
SLOW_SECONDS = 5.0


def cluster_looks(queue: SlurmQueue, gpu: bool, rooms_dir: Path) -> list[tuple[str, Callable[[], str]]]:
    """What to look at, by name, in an order in which the first that fails explains the others.

    Args:
        gpu: the recipe trains on a GPU, so that a node without one cannot serve.
        rooms_dir: the directory of the rooms, which the nodes must see.
    """
    return [
        ("slurm commands", _commands),
        ("slurm partition", lambda: _partition(queue)),
        ("slurm account", lambda: _account(queue)),
        ("slurm accounting", _accounting),
        ("slurm request", lambda: _request(queue, rooms_dir)),
        ("a node", lambda: _node(queue, gpu, rooms_dir)),
    ]


def _commands() -> str:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise SweepError(f"{', '.join(missing)} not found; run this on a login node of the cluster")
    return commands.command(["sbatch", "--version"]).strip()


def _partition(queue: SlurmQueue) -> str:
    lines = commands.command(["sinfo", "-h", "-o", "%R|%P|%a|%l|%G|%D"]).splitlines()
    partitions = [line.split("|") for line in lines if line.count("|") == 5]
    names = sorted({row[0] for row in partitions})
    wanted = queue.slurm_partition
    if wanted is None:
        chosen = [row for row in partitions if row[1].endswith("*")]
        if not chosen:
            raise SweepError(
                f"the cluster has no default partition; set queue.slurm_partition to one of {', '.join(names)}"
            )
    else:
        asked = wanted.split(",")
        if unknown := [name for name in asked if name not in names]:
            raise SweepError(f"queue.slurm_partition={wanted}: there is no {unknown[0]}; allowed: {', '.join(names)}")
        chosen = [row for row in partitions if row[0] in asked]
    up = [row for row in chosen if row[2].startswith("up")]
    if not up:
        raise SweepError(f"the partition {chosen[0][0]} is {chosen[0][2]}; jobs would wait until it is up")
    gres = sorted({row[4] for row in up if row[4] != "(null)"})
    if queue.asks_for_gpus and not any("gpu" in text for text in gres):
        raise SweepError(f"the partition {up[0][0]} has no GPUs (gres: {', '.join(gres) or 'none'}); choose another")
    return f"{up[0][0]}: time limit {up[0][3]}, gres {', '.join(gres) or 'none'}"


def _account(queue: SlurmQueue) -> str:
    if queue.slurm_account is None:
        return "the cluster's default (queue.slurm_account is not set)"
    words = ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account"]
    try:
        accounts = sorted(set(commands.command(words).split()))
    except SweepError:
        return f"{queue.slurm_account} (cannot be checked: the cluster keeps no accounts)"
    if queue.slurm_account not in accounts:
        known = ", ".join(accounts) or "none"
        raise SweepError(f"queue.slurm_account={queue.slurm_account} is not one of yours; allowed: {known}")
    return queue.slurm_account


def _accounting() -> str:
    try:
        commands.command(["sacct", "-X", "-n", "-S", "now"])
    except (GiveUp, RetryLater):
        return "none: how a job ended is known from squeue, for as long as the scheduler remembers it"
    return "sacct answers"


def _request(queue: SlurmQueue, rooms_dir: Path) -> str:
    """The scheduler's own word on the batch script, account, QOS, gres and time limit included."""
    with _folder(rooms_dir) as folder:
        script = batch_script(folder, executor_parameters(queue.job, "sweep-doctor"), queue.python)
        said = commands.command(["sbatch", "--test-only"], text=script)
    return said.strip().splitlines()[-1].removeprefix("sbatch: ") if said.strip() else "accepted"


def _node(queue: SlurmQueue, gpu: bool, rooms_dir: Path) -> str:
    """A job that imports what a worker needs, and sees how quickly files and locks of the room reach a node."""
    words = dataclasses.replace(queue.job, timeout_min=RUN_MINUTES, slurm_signal_delay_s=10)
    with _folder(rooms_dir) as folder, hold(folder / "lock", "doctor"):
        room = Room(folder)
        parameters = executor_parameters(words, f"sweep-doctor-{folder.name}")
        call = (check_function(), (str(folder), queue.worker_env))
        [job] = submit_calls(submitit_dir(room), parameters, [call], queue.python)
        try:
            answer = _answer(folder, job, parameters["job_name"])
        finally:
            with suppress(SweepError):
                commands.cancel([job])
    return _judged(answer, gpu)


def _answer(folder: Path, job: str, name: str) -> dict[str, Any]:
    began = asked = time.monotonic()
    while not isinstance(answer := read_json(folder / "answer.json"), dict):
        if (folder / "hello").exists() and not (folder / "ping").exists():
            write_atomic(folder / "ping", "")
        if time.monotonic() - asked > SLOW_SECONDS:
            asked = time.monotonic()
            _still_there(folder, job, name, asked - began)
        time.sleep(0.05)
    return answer


def _still_there(folder: Path, job: str, name: str, seconds: float) -> None:
    """Refuse to wait for a job that has ended without an answer, or any longer."""
    found = next((seen for seen in commands.queue([name]) if seen.id == job), None)
    if found is None or not (found.waits or found.runs):
        lines = (read_text(job_log(Room(folder), job)) or "no output").strip().splitlines()
        how = commands.ended(found.state, found.node) if found else "gone"
        raise SweepError(f"job {job} {how} before it answered: {lines[-1] if lines else 'no output'}")
    if seconds > (60 * RUN_MINUTES if found.runs else WAIT_SECONDS):
        where = f"runs on {found.node}" if found.runs else f"waits: {commands.why_it_waits(found.reason)}"
        raise SweepError(f"job {job} gave no answer within {seconds:.0f} s; it {where}")


def _judged(answer: dict[str, Any], gpu: bool) -> str:
    node = answer["node"]
    if answer["error"]:
        raise SweepError(f"on {node}: {answer['error']}; the nodes need the same Python environment as this machine")
    if gpu and not answer["gpus"]:
        raise SweepError(f"torch sees no CUDA device on {node}, and the recipe wants one; see queue.gpus_per_node")
    if not answer["lock"]:
        raise SweepError(
            f"a lock that is held here is not seen on {node}: mount the rooms with locks that hold across nodes "
            "(NFS with lockd, Lustre with -o flock), or never start two controllers of one sweep"
        )
    if answer["seconds"] > SLOW_SECONDS:
        raise SweepError(
            f"a file took {answer['seconds']:.1f} s to be seen on {node} and answered; stops and assignments will be "
            "as slow: mount the rooms with a shorter attribute cache (actimeo), or use another file system"
        )
    seen = f"files go both ways in {answer['seconds']:.2f} s, locks hold"
    return f"{node}: Python {answer['python']}, torch {answer['torch']}, {answer['gpus']} CUDA devices, {seen}"


@contextmanager
def _folder(rooms_dir: Path) -> Iterator[Path]:
    """A directory beside the rooms, which the nodes must see too."""
    rooms_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=rooms_dir.resolve()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
