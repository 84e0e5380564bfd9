"""Submits functions of `trainer` to SLURM through submitit.

Invariants: what is pickled is a function by its name with plain values, so that a node needs nothing of `sweep`. The
pickles and logs of a sweep lie in its room, in a directory of their own; nothing of ours ever reads the pickles.
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

from sweep.queues.slurm import commands
from sweep.queues.slurm.section import Submitit
from trainer.room import Room

# submitit's shared words and what its SLURM executor calls them
EXECUTOR_WORDS = {"timeout_min": "time", "mem_gb": "mem"}


@dataclass(frozen=True)
class Submission:
    """How the workers of a room become jobs.

    Args:
        sweep: its name, with which the jobs' names begin.
        words: what each job asks for.
        options: for `trainer.entry.slurm_job.serve`.
        python: the interpreter on the nodes, None: this one.
        function: what a job runs: of (room, worker, options), plain values all.
    """

    room: Room
    sweep: str
    words: Submitit
    options: Mapping[str, Any]
    python: str | None = None
    function: Callable[[str, str, Mapping[str, Any]], None] | None = None

    @property
    def folder(self) -> Path:
        return submitit_dir(self.room)

    def name(self, worker: str) -> str:
        """The name of a submission whose first worker this is; no other submission ever has it."""
        return job_name(self.room, self.sweep, worker)

    def submit(self, name: str, workers: Sequence[str], without: Sequence[str] = ()) -> list[str]:
        """One job, or one array of jobs, for these workers; their ids.

        Args:
            without: nodes to keep away from.

        Raises:
            RetryLater: the scheduler does not answer. GiveUp: it refuses.
        """
        calls = [(self._function, (str(self.room.root), worker, dict(self.options))) for worker in workers]
        return submit_calls(self.folder, self._parameters(name, without), calls, self.python)

    def complete(self, job: str, worker: str) -> None:
        """Give a job its pickle, where a controller died before it had."""
        complete_call(
            self.folder,
            job,
            self.words.timeout_min,
            (self._function, (str(self.room.root), worker, dict(self.options))),
        )

    def script(self, name: str, workers: Sequence[str]) -> str:
        """What sbatch would be given; needs no SLURM."""
        return batch_script(self.folder, self._parameters(name), self.python, len(workers))

    @property
    def _function(self) -> Callable[[str, str, Mapping[str, Any]], None]:
        if self.function is not None:
            return self.function
        from trainer.entry.slurm_job import serve

        return serve

    def _parameters(self, name: str, without: Sequence[str] = ()) -> dict[str, Any]:
        found = executor_parameters(self.words, name)
        if without:
            found["exclude"] = ",".join(filter(None, [found.get("exclude"), *without]))
        return found


def check_function() -> Callable[[str, Mapping[str, str]], None]:
    """What a job runs to see whether a worker could: of (directory, environment)."""
    from trainer.entry.slurm_job import check

    return check


def submitit_dir(room: Room) -> Path:
    """submitit's files: batch scripts, pickles and logs."""
    return room.root / "submitit"


def job_log(room: Room, job: str) -> Path:
    """Standard output and error of a job."""
    return submitit_dir(room) / f"{job}_0_log.out"


def job_name(room: Room, sweep: str, what: str) -> str:
    """SLURM's name for a job of a room; sweeps of one name in two rooms do not share it."""
    token = hashlib.sha1(str(room.root).encode(), usedforsecurity=False).hexdigest()[:6]
    return f"{sweep}-{token}-{what}"


def executor_parameters(words: Submitit, name: str) -> dict[str, Any]:
    """The parameters of submitit's SLURM executor: one task on one node, one log for output and errors."""
    given = {key: value for key, value in dataclasses.asdict(words).items() if value not in (None, [], {})}
    found = {EXECUTOR_WORDS.get(key, key.removeprefix("slurm_")): value for key, value in given.items()}
    if "mem" in found and words.slurm_mem is None:
        found["mem"] = f"{round(float(found['mem']) * 1024)}MB"
    return {**found, "job_name": name, "nodes": 1, "ntasks_per_node": 1, "stderr_to_stdout": True}


def submit_calls(
    folder: Path,
    parameters: Mapping[str, Any],
    calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]],
    python: str | None = None,
) -> list[str]:
    """Submit calls of functions, as one array where they are several; their job ids.

    Raises:
        RetryLater: the scheduler does not answer. GiveUp: it refuses, or there is none.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    commands.require("sbatch")
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*"))
    with _as_submitter():
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=0, python=python)
            executor.update_parameters(**parameters)
            with executor.batch() if len(calls) > 1 else contextlib.nullcontext():
                jobs = [executor.submit(function, *arguments) for function, arguments in calls]
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            for path in set(folder.glob("*")) - before:  # submitit leaves the pickles of what was refused
                path.unlink(missing_ok=True)
            raise commands.refusal("sbatch", str(error)) from error
    return [str(job.job_id) for job in jobs]


def complete_call(folder: Path, job: str, timeout_min: int, call: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Give a job its pickle, where whoever submitted it had no answer; without one the job ends in a minute."""
    from submitit.core.utils import DelayedSubmission

    path = folder / f"{job}_submitted.pkl"
    if not path.exists():
        function, arguments = call
        delayed = DelayedSubmission(function, *arguments)
        delayed.set_timeout(timeout_min, 0)
        delayed.dump(path)


def batch_script(folder: Path, parameters: Mapping[str, Any], python: str | None, jobs: int = 1) -> str:
    """The text that submitit hands to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python or shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array: dict[str, Any] = {"map_count": jobs} if jobs > 1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(_make_sbatch_string(command=command, folder=folder, **array, **parameters))


@contextlib.contextmanager
def _as_submitter() -> Iterator[None]:
    """While the block runs, the environment is the one that a submission may see: nothing else is taken out of it, not
    even for a moment, since other threads of the controller read it."""
    shown = commands.job_env()
    hidden = {key: value for key, value in os.environ.items() if key not in shown}
    for key in hidden:
        os.environ.pop(key, None)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # sbatch's words are in the error
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.update(hidden)
