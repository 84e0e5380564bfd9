"""A controller without a terminal: a process in the background, or a job of the sweep's own queue.

Invariant: a controller job that must end leaves the sweep as it is; only the one whose time limit is near submits a
successor.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from pathlib import Path
from typing import IO

from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl
from sweep.errors import RetryLater, SweepError
from sweep.model.effects import Finish
from sweep.model.states import Finished
from sweep.processes import PreforkServer, clean_env, python_command
from sweep.queues.controller_job import ControllerJob
from sweep.wiring.backends import backend_of
from sweep.wiring.rooms import controller_runs, controller_whereabouts, load_settings, rooms_dir, whereabouts
from trainer import logs
from trainer.exit_guard import limit_exit
from trainer.presence import room_token
from trainer.room import OWN_FILE, Room

START_SECONDS = 30.0
# Seconds for which a controller's job waits until an earlier controller has released the room.
LOCK_SECONDS = 120.0
# Seconds between two queries of a queue about a controller's job that has not started.
COMING_SECONDS = 5.0
logger = logging.getLogger(__name__)


def start_detached(room: Room, lock: IO[str] | None = None) -> str:
    """Start a controller that outlives this terminal; returns what to tell the person.

    Args:
        lock: the room's lock if this process holds it; a controller on this machine inherits it.

    Raises:
        RetryLater: the queue does not answer, or a job of the controller waits or runs. GiveUp: the queue refuses.
    """
    name = room.root.name
    how = f"`sweep watch {name}`, `sweep stop {name}`"
    if job := controller_job(room):
        return f"{name} runs as {job.submit()}; {how}, `sweep logs {name} --controller`"
    return f"{name} runs in the background; {how}; its log is {_start_process(room, lock)}"


def coming_controller(room: Room) -> str:
    """What the queue says of a controller's job that waits or runs, for a person; empty if there is none."""
    job = controller_job(room)
    return job.status() if job else ""


def take_over(room: Room) -> str:
    """Cancel a controller's job that waits in the queue, since it would later undo what is done now.

    Returns:
        Its id; empty if there is none.

    Raises:
        RetryLater: the queue does not answer.
    """
    job = controller_job(room)
    return job.cancel() if job else ""


def controller_log(room: Room) -> Path:
    """The file into which the last detached controller writes."""
    job = controller_job(room)
    return (job.log() if job else None) or _process_log(room)


def controller_job(room: Room) -> ControllerJob | None:
    """The controller of a room as a job of its queue; None if a detached controller is a process of this machine."""
    settings = load_settings(room)
    return backend_of(settings).controller_job(room, settings, control)


def control(root: str, token: str | None = None) -> None:
    """Run the controller of a room in a job of its queue, and submit the next job if the time limit comes first.

    Args:
        token: of the sweep that the job was submitted for; None: a job that an old version submitted.
    """
    limit_exit()
    logs.configure()
    room = Room(Path(root))
    if token is not None and token != room_token(room):
        logger.error("the sweep of this job was deleted; %s is not its room any more, so this job ends", room.root)
        return
    job = controller_job(room)
    assert job is not None, "only a queue that has such jobs starts this function"
    if current := job.replaced_by():  # the submission of this job had no answer, and another was made
        logger.info("the controller's job is %s, so this job ends", current)
        return
    run_control = RunControl(room, in_job=True)
    finish = _drive(room, run_control)
    logger.info("%s: %s", finish.how, finish.reason)
    if (
        finish.how is Finished.HANDED_OVER
        and run_control.handover_signal is not None
        and job.ends_by(run_control.handover_signal)
    ):
        try:
            successor = job.hand_over(run_control.handover_at)
        except (SweepError, OSError) as error:
            how = f"start one with `sweep resume {room.root.name} --detach`"
            raise SystemExit(f"no controller follows: {error}; the workers keep training; {how}") from None
        logger.info("the next controller is job %s", successor)


def _drive(room: Room, run_control: RunControl) -> Finish:
    """Run the controller; an earlier one may need a moment to release the room."""
    deadline = time.monotonic() + LOCK_SECONDS
    job = controller_job(room)
    continues = job is not None and job.continues()
    while True:
        try:
            return drive(room, run_control, PreforkServer(), continues)
        except RetryLater:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _start_process(room: Room, lock: IO[str] | None) -> Path:
    """Start the controller as a process of this machine, and wait until it holds the room; returns its log.

    Args:
        lock: the room's lock if this process holds it. The new process inherits it, so that no other one can take it
            in between.
    """
    log = _process_log(room)
    handed = () if lock is None else (lock.fileno(),)
    more = ["--lock", *map(str, handed)] if handed else []
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OWN_FILE, 0o666), "ab") as output:
        child = subprocess.Popen(
            python_command("-m", "sweep.cli", "resume", str(room.root), *more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=handed,
            env={**clean_env(), "SWEEP_ROOMS": os.path.abspath(rooms_dir())},  # noqa: PTH100 - `..` and links stay
            cwd=_working_directory(room),
        )
    if lock is not None:
        lock.close()
    deadline = time.monotonic() + START_SECONDS
    while not _holds(room, child) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    return log


def _working_directory(room: Room) -> Path:
    """That of the first command, from which `slurm_setup` and the like read files; the room if it is gone."""
    directory = Path(load_settings(room).directory)
    return directory if directory.is_absolute() and directory.is_dir() else room.root


def _holds(room: Room, child: subprocess.Popen[bytes]) -> bool:
    """Whether this process, or another one that was quicker, controls the room by now."""
    if not controller_runs(room):
        return False
    return controller_whereabouts(room) != whereabouts()  # the child has not written its own into an inherited lock


def _process_log(room: Room) -> Path:
    return room.root / "controller.log"
