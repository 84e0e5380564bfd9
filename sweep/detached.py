"""The controller as a small SLURM job of its own, which hands over to the next one before its time limit.

Invariants: one controller job a room is wanted at a time, and `controller.json` names it before it is submitted. A
controller job that must end leaves the sweep as it is; only the one whose time limit nears submits a successor, since
SLURM starts a requeued one again by itself.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from sweep import slurm
from sweep.errors import RetryLater
from sweep.model import Finish, Finished
from sweep.nursery import Nursery
from sweep.queues import SlurmQueue
from sweep.rooms import load_settings
from sweep.run import Wish, drive
from sweep.settings import controller_job
from sweep.submit import executor_parameters, job_log, job_name, submit_calls, submitit_dir
from trainer.room import Room, read_json, write_atomic

LOCK_SECONDS = 120.0


def submit_controller(room: Room) -> str:
    """Submit a job that runs the controller of a room; its job id.

    Raises:
        RetryLater: the scheduler does not answer, or a controller job is there already. GiveUp: it refuses.
    """
    if there := find_controller(room):
        where = f"runs on {there.node}" if there.runs else f"waits: {slurm.why_it_waits(there.reason)}"
        raise RetryLater(f"the controller's job {there.id} is there already and {where}")
    return _submit(room)


def find_controller(room: Room) -> slurm.QueuedJob | None:
    """The controller's job while it waits or runs.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    name = _named(room).get("name")
    jobs = slurm.queue([name]) if name else []
    return next((job for job in jobs if job.waits or job.runs), None)


def cancel_controller(room: Room) -> str:
    """End a controller's job that has not come to run; its id, empty where there is none."""
    there = find_controller(room)
    if there is None:
        return ""
    slurm.cancel([there.id])
    return there.id


def controller_log(room: Room) -> Path:
    """Where the last detached controller wrote what it did."""
    job = _named(room).get("id")
    return job_log(room, job) if job else room.root / "controller.log"


def control(root: str) -> None:
    """What the job runs."""
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
    write_atomic(room.root / "controller.json", json.dumps({"name": name, "number": number, "id": ""}))
    parameters = executor_parameters(controller_job(settings.queue), name)
    [job] = submit_calls(submitit_dir(room), parameters, [(control, (str(room.root),))], settings.queue.python)
    write_atomic(room.root / "controller.json", json.dumps({"name": name, "number": number, "id": job}))
    return job


def _named(room: Room) -> dict[str, Any]:
    found = read_json(room.root / "controller.json")
    return found if isinstance(found, dict) else {}
