"""The controller as a W&B Launch job on its sweep's own queue: `sweep run controller=launch`.

Invariants: the room outlives the job, so it lies in an object store or on a file system that jobs see. The person's
machine lets go of the room before the job is pushed; the lock and the store's lease keep a second controller out.
"""

from __future__ import annotations

import json
from typing import Any

from sweep.errors import ConfigError, RetryLater
from sweep.launchapi import Push, make_api
from sweep.launchjobs import job_name, room_for_jobs
from sweep.queues import LaunchQueue
from sweep.rooms import controller_runs, load_settings, whereabouts
from sweep.settings import Settings
from sweep.tracking import init_arguments, place, worker_run_id
from trainer.contract import JOB_KEY
from trainer.room import Room, read_json, write_atomic


def check_controller(settings: Settings) -> None:
    """Refuse a controller that no job could be.

    Raises:
        ConfigError: the queue is none of W&B Launch, or nothing outlives the job.
    """
    queue = settings.queue
    if not isinstance(queue, LaunchQueue):
        raise ConfigError("controller=launch needs a queue of W&B Launch; use --detach on this machine and on SLURM")
    if queue.channel == "wandb":
        raise ConfigError(
            "controller=launch with queue.channel=wandb: the sweep's room would end with the controller's job; set "
            "queue.channel=room, and queue.room to a path or URL that jobs see"
        )


def push_controller(room: Room) -> str:
    """Push the controller's job; what to tell the person.

    Raises:
        ConfigError: see `check_controller`. RetryLater: W&B or the store does not answer. GiveUp: W&B refuses.
    """
    settings = load_settings(room)
    check_controller(settings)
    queue = settings.queue
    assert isinstance(queue, LaunchQueue)
    if controller_runs(room):
        raise RetryLater(f"another controller runs {settings.name} already; end it with `sweep stop {settings.name}`")
    number = int(_record(room).get("number", 0)) + 1
    run = worker_run_id(settings, f"controller-{number}")
    write_atomic(room.root / "controller.json", json.dumps({"number": number, "run": run}))
    if settings.store_url is not None:
        from sweep.mirrored import mirrored

        with mirrored(room, settings.store_url, whereabouts()):
            pass  # both sides are brought to one state
    init = init_arguments(settings, f"{settings.name}-controller", "controller")
    job = {
        "controller": room_for_jobs(settings, room),
        "run": run,
        "init": {key: init[key] for key in ("project", "entity", "group", "name", "job_type", "tags") if key in init},
    }
    make_api(queue, place(settings), job_name(settings)).push(Push(run, f"{settings.name}-controller", {JOB_KEY: job}))
    how = f"`sweep status {settings.name}`, `sweep stop {settings.name}`, `sweep best {settings.name}`"
    return f"{settings.name} is controlled by a job of the queue {queue.name}, run {place(settings).path}/{run}; {how}"


def _record(room: Room) -> dict[str, Any]:
    found = read_json(room.root / "controller.json")
    return found if isinstance(found, dict) else {}
