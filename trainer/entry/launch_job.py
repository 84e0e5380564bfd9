"""The entry point of a W&B Launch job: a worker that the configuration of the job's run describes.

    python -m trainer.entry.launch_job

The job shares a room with the controller (a path, or the URL of an object store), or W&B only. With W&B only, its room
is a temporary directory. Its first trials, further trials and the request to drain come through the run's
configuration, and reports and outcomes go to the runs of its trials (`trainer.tracking.tracker`).

Invariants: variables that the agent sets for the run that it starts never reach a trial, which names its own run. One
process serves a worker's name: a job ends at once if an agent starts it again, or if no controller waits for it any
more. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import logs
from trainer.contract import DROPPED_ENV, JOB_KEY, Tracking, TrialSpec, decode, encode
from trainer.entry.slurm_job import serve
from trainer.exit_guard import limit_exit
from trainer.names import name_or_empty
from trainer.presence import RoomPresence, write_token
from trainer.process_end import how_it_ended
from trainer.room import UNWANTED, Room, WorkerDir, make_directory, read_text, write_atomic

_log = logging.getLogger("trainer.entry.launch_job")  # also when it runs as `__main__`

# Variables that an agent sets for the run that it starts.
AGENT_ENV = re.compile(r"WANDB_(LAUNCH(_.*)?|CONFIG(_\d+)?|RUN_ID|NAME|RESUME|ARTIFACTS|DOCKER|SWEEP_ID)")
# How often a worker that shares W&B only looks for further trials.
POLL_SECONDS = 10.0


class JobError(Exception):
    """This process is no job of a sweep, or its room or controller failed."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job, as its run's configuration describes it.

    Args:
        worker: its name in the room.
        channel: `room`, or `wandb` if it shares W&B only with the controller.
        room: a path or URL; empty for the channel wandb.
        options: see `trainer.entry.slurm_job.serve`; of a controller's job only `env` and `token` count. An artifact of
            an old version takes no further field than these.
        specs: its first trials, in the contract's JSON.
        run: the id of the job's run if it is the worker's own; empty if it is a trial's.
        init: arguments of `wandb.init` for that run; the trials' runs have the same entity and project.
        more: whether it may get further trials.
        controller: the room that this job controls, if it is a controller and no worker.
    """

    worker: str = ""
    channel: str = "room"
    room: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    specs: tuple[Any, ...] = ()
    run: str = ""
    init: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False
    controller: str = ""

    @property
    def token(self) -> str:
        """The token of the sweep's creation; empty: a sweep of an old version."""
        return str(self.options.get("token", ""))


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run the job that `environ` describes; returns the exit code of the process."""
    limit_exit()
    logs.configure()
    try:
        job = read_job(environ)
        for name in [name for name in os.environ if name in DROPPED_ENV or AGENT_ENV.fullmatch(name)]:
            del os.environ[name]
        if job.controller:
            return _control(job)
        with _room(job) as room:
            if claim(room.worker(job.worker)) and not _already_served(job):
                with _own_run(job), _follow_inbox(job, room):
                    serve(str(room.root), job.worker, job.options)
            else:
                _log.info("worker %s has been served already, or no controller waits for it any more", job.worker)
    except JobError as error:
        print(f"sweep job: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def read_job(environ: Mapping[str, str]) -> JobSpec:
    """The job in WANDB_CONFIG, which an agent cuts into numbered parts if it is long.

    Raises:
        JobError: there is none.
    """
    text = environ.get("WANDB_CONFIG")
    if text is None:
        parts: list[str] = []
        while (part := environ.get(f"WANDB_CONFIG_{len(parts)}")) is not None:
            parts.append(part)
        text = "".join(parts)
    try:
        raw = json.loads(text)[JOB_KEY]
        job = JobSpec(**{**raw, "specs": tuple(raw.get("specs", ()))})
        if not name_or_empty(job.worker) and not job.controller:
            raise KeyError("worker")
        return job
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"WANDB_CONFIG holds no job of a sweep ({error!r}); start jobs with `sweep run queue=launch_…`"
        ) from error


def claim(worker: WorkerDir) -> bool:
    """Take this name for this process, once and for all.

    Returns:
        False if another process has taken it, or no controller waits for it any more.
    """
    if read_text(worker.drain) == UNWANTED or worker.exit.exists() or worker.beat.exists():
        return False
    make_directory(worker.path, worker.path.parent.parent)
    try:
        (worker.path / "claim").open("x", encoding="utf-8").close()
    except FileExistsError:
        return False
    return True


def _control(job: JobSpec) -> int:
    """Run the sweep's controller as a child process. A signal or a stop in W&B ends it, so that another can resume."""
    os.environ.update(job.options.get("env", {}))
    logs.configure()
    command = [sys.executable, "-P", "-m", "sweep.cli", "resume", job.controller, "--in-job"]
    command += ["--token", job.token] if job.token else []
    with _own_run(job) as stopped:
        with subprocess.Popen(command) as process:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: process.terminate())
            while process.poll() is None:
                if stopped.wait(1.0):
                    process.terminate()
                    stopped.clear()
        if process.returncode != 0:
            raise JobError(f"the controller of {job.controller} ended with {how_it_ended(process.returncode)}")
    return 0


def _already_served(job: JobSpec) -> bool:
    """Whether a process has served this name before, as W&B says; False if the room itself would say so."""
    if job.channel != "wandb":
        return False
    import wandb

    first = decode(TrialSpec, json.dumps(job.specs[0])) if job.specs and not job.run else None
    run = first.tracking.run if first is not None and first.tracking is not None else job.run
    with suppress(Exception):  # there is no such run yet
        logged = wandb.Api().run(f"{job.init['entity']}/{job.init['project']}/{run}").config.get("sweep") or {}
        return bool(logged.get("worker") == job.worker or (first and logged.get("attempt", 0) > first.attempt))
    return False


@contextmanager
def _room(job: JobSpec) -> Iterator[Room]:
    if job.channel == "wandb":
        with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
            room = Room(Path(directory))
            write_token(room, job.token)
            write_assignments(room, job.worker, job.specs)
            yield room
    elif "://" in job.room:
        from trainer.store.worker_sync import synced_room

        with (
            tempfile.TemporaryDirectory(prefix="sweep-") as directory,
            synced_room(job.room, Path(directory), job.worker, token=job.token) as room,
        ):
            yield room
    else:
        room = Room(Path(job.room))
        if not room.root.is_dir():
            raise JobError(
                f"the room {job.room} does not exist on this machine; mount it here, or set queue.room to a path or "
                "URL that jobs see, or queue.channel=wandb"
            )
        if job.token:
            RoomPresence(room, job.token).check()
        yield room


def write_assignments(room: Room, worker: str, specs: Iterator[Any] | tuple[Any, ...]) -> None:
    """Put specifications into the job's own room, and into the worker's inbox."""
    for raw in specs:
        spec = decode(TrialSpec, json.dumps(raw))
        files = room.attempt(spec.trial, spec.attempt)
        if files.spec.exists():
            continue
        if spec.attempt > 1 and spec.tracking is not None:
            _fetch_checkpoint(room, spec, spec.tracking)
        write_atomic(files.spec, encode(spec), root=room.root)
        room.worker(worker).assign(spec.trial, spec.attempt)


def _fetch_checkpoint(room: Room, spec: TrialSpec, tracking: Tracking) -> None:
    """Download the newest checkpoint of the trial as that of its last attempt; without one the trial begins anew."""
    import wandb

    previous = room.attempt(spec.trial, spec.attempt - 1)
    artifact = f"{tracking.init['entity']}/{tracking.init['project']}/{tracking.checkpoint}:latest"
    try:
        wandb.Api().artifact(artifact, type="checkpoint").download(root=str(previous.path))
    except Exception as error:
        _log.warning("trial %d begins anew: there is no checkpoint %s (%s)", spec.trial, artifact, error)
        return
    write_atomic(previous.spec, encode(spec))


@contextmanager
def _own_run(job: JobSpec) -> Iterator[threading.Event]:
    """Keep the job's own W&B run, if it has one, while the block runs; the event says that it was stopped in W&B."""
    stopped = threading.Event()
    if not job.run:
        yield stopped
        return
    import wandb

    settings = wandb.Settings(silent=True, console="off", stop_fn=stopped.set)
    config = {"sweep": {"worker": job.worker}}
    run = wandb.init(**job.init, id=job.run, config=config, resume="allow", reinit="create_new", settings=settings)
    code = 1
    try:
        yield stopped
        code = 0
    finally:
        run.finish(exit_code=code)


@contextmanager
def _follow_inbox(job: JobSpec, room: Room) -> Iterator[None]:
    """While the block runs, take further trials and the request to drain from the configuration of the job's run."""
    if job.channel != "wandb" or not job.more:
        yield
        return
    done = threading.Event()

    def poll() -> None:
        import wandb

        api, path = wandb.Api(), f"{job.init['entity']}/{job.init['project']}/{job.run}"
        while not done.wait(POLL_SECONDS):
            with suppress(Exception):  # W&B is unreachable; the next poll retries
                run = api.run(path)
                run.load(force=True)
                job_config = run.config.get(JOB_KEY) or {}
                write_assignments(room, job.worker, tuple(job_config.get("inbox", ())))
                if job_config.get("drain"):
                    write_atomic(room.worker(job.worker).drain, "")

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


if __name__ == "__main__":
    sys.exit(main())
