"""The output of SLURM's commands as values: the queue, the end of a job, the limits of a cluster.

Invariants: nothing is decided here. Every command runs with a time limit, and without the environment variables by
which a job would change the next one. A scheduler that does not answer raises `RetryLater`; one that refuses raises
`GiveUp` with its own words. When jobs are listed or cancelled, a refusal is taken as temporary.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sweep.errors import GiveUp, RetryLater
from trainer.contract import DROPPED_ENV

COMMAND_SECONDS = 60.0
# The columns of squeue's long format, separated by `|`, which no name of a node or a job contains.
FIELDS = ("Name", "JobArrayID", "State", "NodeList", "Reason", "RestartCnt")
WAITS = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNS = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
NODE_TO_BLAME = {"FAILED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"}
# Answers of a scheduler that is busy or restarting, or at whose limit of jobs the user is at the moment.
TEMPORARY = (
    "unable to contact slurm controller",
    "socket timed out",
    "timed out",
    "connection refused",
    "connection reset",
    "temporarily unable to accept job",
    "resource temporarily unavailable",
    "slurm backup controller in standby mode",
    "zero bytes were transmitted",
    "communication connection failure",
    "communication shutdown failure",
    "message send failure",
    "message receive failure",
    "unexpected message received",
    "submitlimit",  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit
    "submit job limit",
    "job submit limit",
    "job violates accounting/qos policy",
)
# Prefixes of the variables that SLURM sets in a job and that its commands read as options of a new job.
INHERITED = ("SLURM", "SRUN", "SBATCH", "SQUEUE", "SCANCEL", "SUBMITIT")
KEPT = ("SLURM_CONF", "SLURM_TIME_FORMAT")

# What SLURM's codes for a waiting job mean; the code itself is shown in parentheses.
REASONS = {
    "AssocGrpGRES": "the account's GPUs are all in use",
    "AssocMaxJobsLimit": "the account may run no more jobs at once",
    "BadConstraints": "no node has what slurm_constraint asks for",
    "BeginTime": "held off for a moment after a requeue",
    "Dependency": "another job must end first",
    "InvalidAccount": "the account does not exist",
    "InvalidQOS": "the QOS does not exist or may not be used",
    "JobArrayTaskLimit": "slurm_array_parallelism allows no more at once",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held; release it with `scontrol release`",
    "Licenses": "no licence is free",
    "NodeDown": "a node that it needs is down",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition starts no jobs now",
    "PartitionNodeLimit": "it asks for more nodes than the partition has",
    "PartitionTimeLimit": "timeout_min is above the partition's limit",
    "Priority": "other jobs are ahead of it",
    "QOSGrpGRES": "the QOS's GPUs are all in use",
    "QOSMaxGRESPerUser": "you use as many GPUs as the QOS allows",
    "QOSMaxJobsPerUserLimit": "you run as many jobs as the QOS allows",
    "QOSMaxWallDurationPerJobLimit": "timeout_min is above the QOS's limit",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "Reservation": "its reservation has not begun",
    "Resources": "no node is free yet",
    "launch_failed_requeued_held": "it failed to launch and is held; see `scontrol show job`",
}


class NoCommand(GiveUp):
    """A command of SLURM is not installed on this machine."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job as squeue shows it.

    Args:
        id: job id; that of an array's task has the task's index, as in 12_3.
        restarts: how often the job was requeued.
    """

    name: str
    id: str
    state: str
    node: str
    reason: str
    restarts: int

    @property
    def index(self) -> int:
        """The job's index in its array; 0 if it is in no array."""
        task = self.id.partition("_")[2]
        return int(task) if task.isdigit() else 0

    @property
    def waits(self) -> bool:
        return self.state in WAITS

    @property
    def runs(self) -> bool:
        return self.state in RUNS


def queue(names: Sequence[str]) -> list[QueuedJob]:
    """The jobs of these names that SLURM's controller remembers; an ended job for MinJobAge seconds.

    Raises:
        RetryLater: the scheduler does not answer, or refuses. NoCommand: there is no squeue.
    """
    form = ",".join(f"{field}:|" for field in FIELDS)
    with _temporary():
        listing = command(["squeue", "-h", "-r", "-t", "all", f"--name={','.join(names)}", "-O", form])
    jobs = []
    for line in listing.splitlines():
        values = [value.strip() for value in line.split("|")]
        if len(values) >= len(FIELDS):
            name, job, state, node, reason, restarts = values[: len(FIELDS)]
            jobs.append(QueuedJob(name, job, state, node, reason, int(restarts) if restarts.isdigit() else 0))
    return jobs


def accounted(jobs: Sequence[str]) -> dict[str, str]:
    """How these jobs ended according to SLURM's accounting, by job id; empty if the cluster keeps no accounts."""
    parents = sorted({job.partition("_")[0] for job in jobs})
    try:
        listing = command(["sacct", "-X", "-nP", "-j", ",".join(parents), "-o", "JobID,State,ExitCode,NodeList"])
    except (RetryLater, GiveUp):
        return {}
    ends = {}
    for line in listing.splitlines():
        job, state, code, node = (line.split("|") + [""] * 4)[:4]
        if job in jobs:
            ends[job] = ended(state, node, code)
    return ends


def ended(state: str, node: str = "", code: str = "") -> str:
    """How a job ended, for a person: SLURM's state, the node, and the exit code of a failed one."""
    word, _, by = state.partition(" ")
    text = f"{word.rstrip('+')} {by}".strip()
    if word.startswith("FAILED") and code:
        text += f" with exit code {code.partition(':')[0]}"
    return text + (f" on {node}" if node and node != "None assigned" else "")


def cancel(jobs: Sequence[str]) -> None:
    """Cancel these jobs; nothing happens to jobs that have ended.

    Raises:
        RetryLater: the scheduler does not answer, or refuses. NoCommand: there is no scancel.
    """
    with _temporary():
        try:
            command(["scancel", *jobs])
        except GiveUp as error:
            if "invalid job id" not in str(error).lower() and "already completing" not in str(error).lower():
                raise


@contextmanager
def _temporary() -> Iterator[None]:
    """Turn a refusal of the scheduler in this block into `RetryLater`; a missing command still raises `NoCommand`."""
    try:
        yield
    except NoCommand:
        raise
    except GiveUp as error:
        raise RetryLater(str(error)) from error


def max_array() -> int:
    """The largest number of tasks that one array may have.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    size = re.search(r"MaxArraySize\s*=\s*(\d+)", command(["scontrol", "show", "config"]))
    return max(1, int(size[1])) if size else 1


def why_it_waits(code: str) -> str:
    """SLURM's reason code for a waiting job in plain words, followed by the code."""
    key = code.strip("()").partition(",")[0].partition(":")[0].strip()
    if key in ("", "None"):
        return "the scheduler has not looked at it yet"
    words = REASONS.get(key) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).replace("_", " ").lower()
    return f"{words} ({key})"


def job_env() -> dict[str, str]:
    """The environment for a submission: this process's own, without the variables that SLURM set for a job it is in.

    Outside a job a person's own defaults, such as SBATCH_PARTITION, are kept.
    """
    inherited = INHERITED if "SLURM_JOB_ID" in os.environ else ()
    dropped = [key for key in os.environ if key.startswith(inherited) and key not in KEPT]
    return {key: value for key, value in os.environ.items() if key not in (*dropped, *DROPPED_ENV)}


def restarts() -> int:
    """How often SLURM has requeued the job that this process is in."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def require(name: str) -> None:
    """Make sure that a command of SLURM is installed.

    Raises:
        NoCommand: it is not.
    """
    if shutil.which(name) is None:
        raise NoCommand(f"the command {name} is not here; run this where SLURM is, on a login node of the cluster")


def command(words: Sequence[str], text: str | None = None) -> str:
    """The standard output of a command.

    Args:
        text: standard input.

    Raises:
        RetryLater: the scheduler does not answer, or refuses temporarily.
        GiveUp: the scheduler refuses. NoCommand: the command is not installed.
    """
    require(words[0])
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMMAND_SECONDS,
            env=job_env(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RetryLater(f"{words[0]} did not answer within {COMMAND_SECONDS:g} s") from error
    if done.returncode:
        raise refusal(words[0], done.stderr or done.stdout)
    return done.stdout + (done.stderr if words[0] == "sbatch" else "")  # sbatch --test-only prints on stderr


def refusal(name: str, words: str) -> RetryLater | GiveUp:
    """The error that a scheduler's refusal becomes, from the command's name and output."""
    lines = [line.strip() for line in words.strip().splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"s\w+: ", line)] or lines[-3:]  # SLURM's lines, not its caller's
    said = "; ".join(dict.fromkeys(re.sub(r"^(s\w+: )?(error: |fatal: )?", "", line) for line in own)) or "no output"
    kind = RetryLater if any(hint in said.lower() for hint in TEMPORARY) else GiveUp
    return kind(f"{name}: {said}")
