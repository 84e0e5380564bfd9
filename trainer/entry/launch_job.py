"""What a W&B Launch job runs: `python -m trainer.entry.launch_job`, a worker that its run's configuration describes.

The job shares with the controller a room (a path, or the URL of an object store), or W&B alone: then the room is a
directory of its own, its first trials come in the configuration, more of them and the word to end through it, and
reports and outcomes leave through its trials' runs (see `trainer.tracking.tracker`).

Invariants: nothing that the agent set for a run of its own leaks into a trial's: each trial says itself which run it
is. A worker's name is served once: a job that an agent starts again, or that starts when nobody waits for it any more,
ends at once. Nothing is unpickled.
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
from trainer.room import UNWANTED, Room, WorkerDir, read_text, write_atomic

_log = logging.getLogger("trainer.entry.launch_job")  # also when it runs as `__main__`

# What an agent sets for the run that it thinks it starts.
AGENT_ENV = re.compile(r"WANDB_(LAUNCH(_.*)?|CONFIG(_\d+)?|RUN_ID|NAME|RESUME|ARTIFACTS|DOCKER|SWEEP_ID)")
# How often a worker that shares nothing but W&B looks whether it has been given more.
ASK_SECONDS = 10.0


class JobError(Exception):
    """This process is no job of a sweep, or cannot reach its room."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job is told in its run's configuration.

    Args:
        worker: its name in the room.
        channel: room, or wandb where it shares nothing else with the controller.
        room: a path or URL; empty for the channel wandb.
        options: see `trainer.entry.slurm_job.serve`.
        specs: the trials that it begins with, in the contract's JSON.
        run: the id of the job's run where that is the worker's own and not a trial's; else empty.
        init: arguments of `wandb.init` for that run; entity and project also tell where the trials' runs are.
        more: it may be given more trials than it begins with.
        controller: the room that this job is to control, in the place of being a worker.
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


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Serve as the worker that `environ` describes; returns the process's exit code."""
    limit_exit()
    logs.configure()
    try:
        job = read_job(environ)
        for name in [name for name in os.environ if name in DROPPED_ENV or AGENT_ENV.fullmatch(name)]:
            del os.environ[name]
        if job.controller:
            return _control(job)
        with _room(job) as room:
            if claim(room.worker(job.worker)) and not _served(job):
                with _own_run(job), _inbox(job, room):
                    serve(str(room.root), job.worker, job.options)
            else:
                _log.info("worker %s has been served already, or no controller waits for it any more", job.worker)
    except JobError as error:
        print(f"sweep job: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def read_job(environ: Mapping[str, str]) -> JobSpec:
    """The job in WANDB_CONFIG, which an agent cuts into numbered parts where it is long.

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
        if not job.worker and not job.controller:
            raise KeyError("worker")
        return job
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"WANDB_CONFIG holds no job of a sweep ({error!r}); it is pushed by `sweep run queue=launch_…`"
        ) from error


def claim(worker: WorkerDir) -> bool:
    """Take this name for this process, once and for all; False where another had it, or nobody waits for it."""
    if read_text(worker.drain) == UNWANTED or worker.exit.exists() or worker.beat.exists():
        return False
    worker.path.mkdir(parents=True, exist_ok=True)
    try:
        (worker.path / "claim").open("x").close()
    except FileExistsError:
        return False
    return True


def _control(job: JobSpec) -> int:
    """Run the sweep's controller as a process of its own; a signal or a stop in W&B lets another go on."""
    command = [sys.executable, "-m", "sweep.cli", "resume", job.controller, "--in-job"]
    with _own_run(job) as stopped:
        with subprocess.Popen(command) as process:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: process.terminate())
            while process.poll() is None:
                if stopped.wait(1.0):
                    process.terminate()
                    stopped.clear()
        if process.returncode != 0:
            raise JobError(f"the controller of {job.controller} ended with exit code {process.returncode}")
    return 0


def _served(job: JobSpec) -> bool:
    """Whether W&B knows of a process that served this name; asked where W&B is all that could know of one."""
    if job.channel != "wandb":
        return False
    import wandb

    first = decode(TrialSpec, json.dumps(job.specs[0])) if job.specs and not job.run else None
    run = first.tracking.run if first is not None and first.tracking is not None else job.run
    with suppress(Exception):  # there is no such run yet
        said = wandb.Api().run(f"{job.init['entity']}/{job.init['project']}/{run}").config.get("sweep") or {}
        return bool(said.get("worker") == job.worker or (first and said.get("attempt", 0) > first.attempt))
    return False


@contextmanager
def _room(job: JobSpec) -> Iterator[Room]:
    if job.channel == "wandb":
        with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
            room = Room(Path(directory))
            _put(room, job.worker, job.specs)
            yield room
    elif "://" in job.room:
        from trainer.store.worker_sync import synced_room

        with (
            tempfile.TemporaryDirectory(prefix="sweep-") as directory,
            synced_room(job.room, Path(directory), job.worker) as room,
        ):
            yield room
    else:
        room = Room(Path(job.room))
        if not room.root.is_dir():
            raise JobError(
                f"the room {job.room} does not exist on this machine; mount it here, or set queue.room to a path or "
                "URL that jobs see, or queue.channel=wandb"
            )
        yield room


def _put(room: Room, worker: str, specs: Iterator[Any] | tuple[Any, ...]) -> None:
    """Put specifications into a room of our own, and into the worker's inbox."""
    for raw in specs:
        spec = decode(TrialSpec, json.dumps(raw))
        files = room.attempt(spec.trial, spec.attempt)
        if files.spec.exists():
            continue
        if spec.attempt > 1 and spec.tracking is not None:
            _fetch_checkpoint(room, spec, spec.tracking)
        write_atomic(files.spec, encode(spec))
        room.worker(worker).assign(spec.trial, spec.attempt)


def _fetch_checkpoint(room: Room, spec: TrialSpec, tracking: Tracking) -> None:
    """Bring the newest checkpoint of the trial here, as its last attempt's; without one it begins anew."""
    import wandb

    before = room.attempt(spec.trial, spec.attempt - 1)
    where = f"{tracking.init['entity']}/{tracking.init['project']}/{tracking.checkpoint}:latest"
    try:
        wandb.Api().artifact(where, type="checkpoint").download(root=str(before.path))
    except Exception as error:
        _log.warning("trial %d begins anew: there is no checkpoint %s (%s)", spec.trial, where, error)
        return
    write_atomic(before.spec, encode(spec))


@contextmanager
def _own_run(job: JobSpec) -> Iterator[threading.Event]:
    """The job's own W&B run, where it is not that of its only trial; set once it is asked to stop there."""
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
def _inbox(job: JobSpec, room: Room) -> Iterator[None]:
    """While the block runs, take what the job's run is told later: more trials, and the word to end."""
    if job.channel != "wandb" or not job.more:
        yield
        return
    done = threading.Event()

    def ask() -> None:
        import wandb

        api, path = wandb.Api(), f"{job.init['entity']}/{job.init['project']}/{job.run}"
        while not done.wait(ASK_SECONDS):
            with suppress(Exception):  # W&B is away for a moment
                run = api.run(path)
                run.load(force=True)
                told = run.config.get(JOB_KEY) or {}
                _put(room, job.worker, tuple(told.get("inbox", ())))
                if told.get("drain"):
                    write_atomic(room.worker(job.worker).drain, "")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


if __name__ == "__main__":
    sys.exit(main())
