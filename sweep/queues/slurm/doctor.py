"""Checks that a SLURM cluster can run a sweep: its commands, the request of a job, its accounting, and a node.

Invariants: a check returns what it found or raises what is wrong, independently of the others. No job and no file is
left behind.
"""

from __future__ import annotations

import dataclasses
import getpass
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import GiveUp, RetryLater, SweepError
from sweep.queues.backend import NamedCheck
from sweep.queues.slurm import commands
from sweep.queues.slurm.section import SlurmQueue
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
WAIT_SECONDS = 120.0  # for a job that has not started
RUN_MINUTES = 5  # for a running job: the first import of torch over a network takes minutes
SLOW_SECONDS = 5.0


def cluster_checks(queue: SlurmQueue, gpu: bool, rooms_dir: Path) -> list[NamedCheck]:
    """The checks by name; the first that fails explains those after it.

    Args:
        gpu: whether the recipe trains on a GPU, so that a node without one cannot run it.
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


@dataclass(frozen=True, slots=True)
class _Partition:
    """A group of nodes of a partition, as `sinfo` lists it.

    Args:
        state: up, down, drain or inact.
        limit: the longest time of a job, in SLURM's words.
        gres: generic resources of each node, such as `gpu:4`; empty if it has none.
    """

    name: str
    default: bool
    state: str
    limit: str
    gres: str


def _partitions() -> list[_Partition]:
    rows = [line.split("|") for line in commands.command(["sinfo", "-h", "-o", "%R|%P|%a|%l|%G"]).splitlines()]
    return [
        _Partition(name, marked.endswith("*"), state, limit, "" if gres == "(null)" else gres)
        for name, marked, state, limit, gres in (row for row in rows if len(row) == 5)
    ]


def _chosen(partitions: Sequence[_Partition], configured: str | None) -> list[_Partition]:
    """The configured partitions, or the cluster's default one.

    Raises:
        SweepError: there is none of this name, or no default.
    """
    names = sorted({partition.name for partition in partitions})
    if configured is None:
        if default := [partition for partition in partitions if partition.default]:
            return default
        raise SweepError(
            f"the cluster has no default partition; set queue.slurm_partition to one of {', '.join(names)}"
        )
    listed = configured.split(",")
    if unknown := [name for name in listed if name not in names]:
        raise SweepError(f"queue.slurm_partition={configured}: there is no {unknown[0]}; allowed: {', '.join(names)}")
    return [partition for partition in partitions if partition.name in listed]


def _partition(queue: SlurmQueue) -> str:
    chosen = _chosen(_partitions(), queue.slurm_partition)
    up = [partition for partition in chosen if partition.state.startswith("up")]
    if not up:
        raise SweepError(f"the partition {chosen[0].name} is {chosen[0].state}; jobs would wait until it is up")
    gres = sorted({partition.gres for partition in up if partition.gres})
    if queue.requests_gpus and not any("gpu" in text for text in gres):
        raise SweepError(f"the partition {up[0].name} has no GPUs (gres: {', '.join(gres) or 'none'}); choose another")
    return f"{up[0].name}: time limit {up[0].limit}, gres {', '.join(gres) or 'none'}"


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
    """What the scheduler says of the batch script, with its account, QOS, gres and time limit."""
    with _folder(rooms_dir) as folder:
        script = batch_script(folder, executor_parameters(queue.job, "sweep-doctor"), queue.python)
        answer = commands.command(["sbatch", "--test-only"], text=script).strip()
    return answer.splitlines()[-1].removeprefix("sbatch: ") if answer else "accepted"


def _node(queue: SlurmQueue, gpu: bool, rooms_dir: Path) -> str:
    """Run a short job that imports what a worker needs, and measures how fast files and locks reach its node."""
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
    return _judge(answer, gpu)


def _answer(folder: Path, job: str, name: str) -> dict[str, Any]:
    """What the job wrote, once it has; the job measures how long its greeting waits for the reply made here."""
    began = checked = time.monotonic()
    while not isinstance(answer := read_json(folder / "answer.json"), dict):
        if (folder / "hello").exists() and not (folder / "ping").exists():
            write_atomic(folder / "ping", "")
        if time.monotonic() - checked > SLOW_SECONDS:
            checked = time.monotonic()
            _check_job(folder, job, name, checked - began)
        time.sleep(0.05)
    return answer


def _check_job(folder: Path, job: str, name: str, seconds: float) -> None:
    """Stop waiting for a job that has ended without an answer, or that has had time enough.

    Raises:
        SweepError: with what became of the job.
    """
    queued = next((entry for entry in commands.queue([name]) if entry.id == job), None)
    if queued is None or not (queued.waits or queued.runs):
        lines = (read_text(job_log(Room(folder), job)) or "no output").strip().splitlines()
        how = commands.ended(queued.state, queued.node) if queued else "gone"
        raise SweepError(f"job {job} {how} before it answered: {lines[-1] if lines else 'no output'}")
    if seconds > (60 * RUN_MINUTES if queued.runs else WAIT_SECONDS):
        state = f"runs on {queued.node}" if queued.runs else f"waits: {commands.why_it_waits(queued.reason)}"
        raise SweepError(f"job {job} gave no answer within {seconds:.0f} s; it {state}")


def _judge(answer: dict[str, Any], gpu: bool) -> str:
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
    """A temporary directory among the rooms, which the nodes must see too."""
    rooms_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=rooms_dir.resolve()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
