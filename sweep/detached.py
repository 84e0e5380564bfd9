"""A controller without a terminal: a process in the background, or a small SLURM job of its own.

Invariants: one controller job a room is wanted at a time, and `controller.json` names it before it is submitted. A
controller job that must end leaves the sweep as it is; only the one whose time limit nears submits a successor, since
SLURM starts a requeued one again by itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweep import slurm
from sweep.errors import RetryLater, SweepError
from sweep.model import Finish, Finished
from sweep.nursery import Nursery, clean_env
from sweep.queues import SlurmQueue
from sweep.rooms import controller_runs, load_settings
from sweep.run import Wish, drive
from sweep.settings import controller_job
from sweep.submit import executor_parameters, job_log, job_name, submit_calls, submitit_dir
from trainer.ending import limit_exit
from trainer.room import Room, read_json, write_atomic

START_SECONDS = 30.0
LOCK_SECONDS = 120.0
# Between two questions to a cluster's queue about a controller that is on its way.
COMING_SECONDS = 5.0


def start_detached(room: Room) -> str:
    """Start a controller that outlives this terminal; what to tell the person.

    Raises:
        RetryLater: the scheduler does not answer, or a controller's job is there already. GiveUp: it refuses.
    """
    name = room.root.name
    how = f"`sweep watch {name}`, `sweep stop {name}`"
    if _on_slurm(room):
        if there := find_controller(room):
            raise RetryLater(f"the controller's job {there.id} is there already and {_doing(there)}")
        return f"{name} runs as SLURM job {_submit(room)}; {how}, `sweep logs {name} --controller`"
    return f"{name} runs in the background; {how}; its log is {_start_process(room)}"


def coming_controller(room: Room) -> str:
    """What the queue says of a controller's job that is on its way, for a person; empty where none is."""
    if _on_slurm(room):
        with suppress(SweepError):
            if found := find_controller(room):
                return f"the controller's job {found.id} {_doing(found)}"
    return ""


def take_over(room: Room) -> str:
    """End a controller's job that waits in the queue, which would later undo what is done now; its id, if any.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    there = find_controller(room) if _on_slurm(room) else None
    if there is None:
        return ""
    slurm.cancel([there.id])
    return there.id


def find_controller(room: Room) -> slurm.QueuedJob | None:
    """The controller's job while it waits or runs.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    name = _named(room).get("name")
    jobs = slurm.queue([name]) if name else []
    return next((job for job in jobs if job.waits or job.runs), None)


def controller_log(room: Room) -> Path:
    """Where the last detached controller wrote what it did."""
    job = _named(room).get("id")
    return job_log(room, job) if job else _process_log(room)


def control(root: str) -> None:
    """What the controller's job runs."""
    limit_exit()
    room = Room(Path(root))
    wish = Wish(room, in_job=True)
    finish = _drive(room, wish)
    print(f"{finish.how}: {finish.reason}", flush=True)
    if finish.how is Finished.HANDED_OVER and wish.resigned == signal.SIGUSR2:
        print(f"the next controller is job {_submit(room)}", flush=True)


def _drive(room: Room, wish: Wish) -> Finish:
    """Run the controller; an earlier one may take a moment to let go of the room."""
    deadline = time.monotonic() + LOCK_SECONDS
    goes_on = _named(room)["number"] > 1 or slurm.restarts() > 0
    while True:
        try:
            return drive(room, wish, Nursery(), goes_on)
        except RetryLater:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _submit(room: Room) -> str:
    number = int(_named(room).get("number", 0)) + 1
    settings = load_settings(room)
    assert isinstance(settings.queue, SlurmQueue)
    name = job_name(room, settings.name, f"controller-{number}")
    write_atomic(_record(room), json.dumps({"name": name, "number": number, "id": ""}))
    parameters = executor_parameters(controller_job(settings.queue), name)
    [job] = submit_calls(submitit_dir(room), parameters, [(control, (str(room.root),))], settings.queue.python)
    write_atomic(_record(room), json.dumps({"name": name, "number": number, "id": job}))
    return job


def _start_process(room: Room) -> Path:
    log = _process_log(room)
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "sweep.cli", "resume", str(room.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=clean_env(),
        )
    deadline = time.monotonic() + START_SECONDS
    while not controller_runs(room) and time.monotonic() < deadline:
        time.sleep(0.1)
    return log


def _on_slurm(room: Room) -> bool:
    return isinstance(load_settings(room).queue, SlurmQueue)


def _doing(job: slurm.QueuedJob) -> str:
    return f"runs on {job.node}" if job.runs else f"waits: {slurm.why_it_waits(job.reason)}"


def _process_log(room: Room) -> Path:
    return room.root / "controller.log"


def _record(room: Room) -> Path:
    return room.root / "controller.json"


def _named(room: Room) -> dict[str, Any]:
    found = read_json(_record(room))
    return found if isinstance(found, dict) else {}
