"""Submits functions of `trainer` to SLURM through submitit.

Invariants: a pickle holds the name of a function and plain values, so that a node needs nothing of `sweep`. The pickles
and logs of a sweep are in a directory of its room; this program never reads the pickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError
from sweep.queues.slurm import commands
from sweep.queues.slurm.section import Submitit
from trainer.names import has_control
from trainer.room import Room

# submitit's shared words, and their names in its SLURM executor.
EXECUTOR_WORDS = {"timeout_min": "time", "mem_gb": "mem"}


@dataclass(frozen=True)
class Submission:
    """How the workers of a room become jobs.

    Args:
        sweep: name of the sweep, with which the names of the jobs begin.
        words: what each job requests.
        options: options of `trainer.entry.slurm_job.serve`.
        python: the interpreter on the nodes; None: this one.
        function: what a job runs, with the room's path, the worker's name and the options; None: `serve`.
        token: of the sweep's creation.
    """

    room: Room
    sweep: str
    words: Submitit
    options: Mapping[str, Any]
    python: str | None = None
    function: Callable[[str, str, Mapping[str, Any]], None] | None = None
    token: str = ""

    @property
    def folder(self) -> Path:
        return submitit_dir(self.room)

    def name(self, worker: str) -> str:
        """The job name of the submission whose first worker this is; no other submission ever has it."""
        return job_name(self.room, self.sweep, worker, self.token)

    def submit(self, name: str, workers: Sequence[str], without: Sequence[str] = ()) -> list[str]:
        """Submit one job, or one array of jobs, for these workers; returns the ids of the jobs.

        Args:
            without: nodes that are not used.

        Raises:
            RetryLater: the scheduler does not answer. GiveUp: it refuses.
        """
        calls = [self._call(worker) for worker in workers]
        return submit_calls(self.folder, self._parameters(name, without), calls, self.python)

    def complete(self, job: str, worker: str) -> None:
        """Write the pickle of a job whose controller died before it could."""
        complete_call(self.folder, job, self.words.timeout_min, self._call(worker))

    def script(self, name: str, workers: Sequence[str]) -> str:
        """The batch script that a submission would pass to sbatch; needs no SLURM."""
        return batch_script(self.folder, self._parameters(name), self.python, len(workers))

    def _call(self, worker: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What the job of a worker runs."""
        options = {**self.options, **({"token": self.token} if self.token else {})}
        return self._function, (str(self.room.root), worker, options)

    @property
    def _function(self) -> Callable[[str, str, Mapping[str, Any]], None]:
        if self.function is not None:
            return self.function
        from trainer.entry.slurm_job import serve

        return serve

    def _parameters(self, name: str, without: Sequence[str] = ()) -> dict[str, Any]:
        parameters = executor_parameters(self.words, name)
        if without:
            parameters["exclude"] = ",".join(filter(None, [parameters.get("exclude"), *without]))
        return parameters


def check_function() -> Callable[[str, Mapping[str, str]], None]:
    """What a job runs to check that a worker could run: a function of a directory and an environment."""
    from trainer.entry.slurm_job import check

    return check


def submitit_dir(room: Room) -> Path:
    """The directory of submitit's files: batch scripts, pickles and logs."""
    return room.root / "submitit"


def job_log(room: Room, job: str) -> Path:
    """The file with standard output and error of a job."""
    return submitit_dir(room) / f"{job}_0_log.out"


def job_name(room: Room, sweep: str, what: str, token: str = "") -> str:
    """The SLURM name of a job of a room.

    Two rooms whose sweeps have the same name do not share it, nor do two rooms of which one replaced the other.

    Args:
        token: of the sweep's creation; empty: a sweep of an old version.
    """
    digest = hashlib.sha1(f"{room.root}{token}".encode(), usedforsecurity=False).hexdigest()[: 12 if token else 6]
    return f"{sweep}-{digest}-{what}"


def executor_parameters(words: Submitit, name: str) -> dict[str, Any]:
    """The parameters of submitit's SLURM executor: one task on one node, one log for output and errors."""
    given = {key: value for key, value in dataclasses.asdict(words).items() if value not in (None, [], {})}
    parameters = {EXECUTOR_WORDS.get(key, key.removeprefix("slurm_")): value for key, value in given.items()}
    if "mem" in parameters and words.slurm_mem is None:
        parameters["mem"] = f"{round(float(parameters['mem']) * 1024)}MB"
    return {**parameters, "job_name": name, "nodes": 1, "ntasks_per_node": 1, "stderr_to_stdout": True}


def submit_calls(
    folder: Path,
    parameters: Mapping[str, Any],
    calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]],
    python: str | None = None,
) -> list[str]:
    """Submit calls of functions, several as one array; returns their job ids.

    Args:
        folder: directory of submitit's files.
        parameters: see `executor_parameters`.
        calls: functions with their arguments.
        python: the interpreter on the nodes; None: this one.

    Raises:
        RetryLater: the scheduler does not answer. GiveUp: it refuses, or SLURM is not installed.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    commands.require("sbatch")
    check_path(folder)
    folder.mkdir(exist_ok=True)  # its room must exist
    before = set(folder.glob("*"))
    with _as_submitter():
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=0, python=safe_python(python))
            executor.update_parameters(**parameters)
            with executor.batch() if len(calls) > 1 else contextlib.nullcontext():
                jobs = [executor.submit(function, *arguments) for function, arguments in calls]
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            for path in set(folder.glob("*")) - before:  # submitit leaves the pickles of refused jobs
                path.unlink(missing_ok=True)
            raise commands.refusal("sbatch", str(error)) from error
    return [str(job.job_id) for job in jobs]


def check_path(path: Path) -> None:
    """Refuse a path that means another one in a batch script.

    Raises:
        ConfigError: SLURM would replace a part of it, or a line of the script would end in it.
    """
    if "%" in str(path) or has_control(str(path)):
        raise ConfigError(
            f"the path {str(path)!r} has a % or a control character, which SLURM does not take as it stands; set "
            "SWEEP_ROOMS to a directory without it"
        )


def complete_call(folder: Path, job: str, timeout_min: int, call: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Write the pickle of a job whose submission had no answer; without a pickle the job ends after a minute."""
    from submitit.core.utils import DelayedSubmission

    path = folder / f"{job}_submitted.pkl"
    if not path.exists():
        function, arguments = call
        delayed = DelayedSubmission(function, *arguments)
        delayed.set_timeout(timeout_min, 0)
        delayed.dump(path)


def safe_python(python: str | None) -> str:
    """The interpreter on the nodes as words of a shell; it does not look for modules in the job's working directory.

    Args:
        python: that of the configuration, which may be a command that ends with an interpreter; None: this one.
    """
    return f"{python or shlex.quote(sys.executable)} -P"


def batch_script(folder: Path, parameters: Mapping[str, Any], python: str | None, jobs: int = 1) -> str:
    """The batch script that submitit passes to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{safe_python(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array: dict[str, Any] = {"map_count": jobs} if jobs > 1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(_make_sbatch_string(command=command, folder=folder, **array, **parameters))


@contextlib.contextmanager
def _as_submitter() -> Iterator[None]:
    """While the block runs, the environment is that of a submission. No other variable is removed, not even for a
    moment, since other threads of the controller read the environment."""
    shown = commands.job_env()
    hidden = {key: value for key, value in os.environ.items() if key not in shown}
    for key in hidden:
        os.environ.pop(key, None)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # the error has sbatch's words
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.update(hidden)
