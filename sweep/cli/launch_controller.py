"""The controller as a W&B Launch job on its sweep's own queue: `sweep run controller=launch`.

Invariants: the room outlives the job, so it lies in an object store or on a file system that jobs see. The person's
machine lets go of the room before the job is pushed; the lock and the store's lease keep a second controller out.
`controller.json` names the last job; a stop marks it as withdrawn before anything else, and a job that holds the room
looks at that before it acts, so that none which waited goes on with a sweep that was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sweep.config.queues import LaunchQueue
from sweep.config.settings import Settings
from sweep.errors import ConfigError, SweepError
from sweep.queues.launch.api import LaunchApi, Push, make_api
from sweep.queues.launch.jobs import job_name, room_for_jobs
from sweep.tracking.runs import init_arguments, wandb_location, worker_run_id
from sweep.wiring.rooms import CONTROLLER_RECORD, controller_record, load_settings, record_controller, settled
from trainer.contract import JOB_KEY
from trainer.room import Room


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
    api = make_api(queue, wandb_location(settings), job_name(settings))
    with settled(room):
        record = controller_record(room)
        _take_off(api, record)
        number = int(record.get("number", 0)) + 1
        run = worker_run_id(settings, f"controller-{number}")
        record_controller(room, {"number": number, "run": run})
    init = init_arguments(settings, f"{settings.name}-controller", "controller")
    job = {
        "controller": room_for_jobs(settings, room),
        "run": run,
        "init": {key: init[key] for key in ("project", "entity", "group", "name", "job_type", "tags") if key in init},
    }
    item = api.push(Push(run, f"{settings.name}-controller", {JOB_KEY: job}))
    record_controller(room, {"number": number, "run": run, "item": item})
    with suppress(SweepError):  # it is pushed; where the store does not answer only this machine can take it off
        _share(room, settings)
    how = f"`sweep status {settings.name}`, `sweep stop {settings.name}`, `sweep best {settings.name}`"
    path = f"{wandb_location(settings).path}/{run}"
    return f"{settings.name} is controlled by a job of the queue {queue.name}, run {path}; {how}"


def withdraw_controller(room: Room) -> str:
    """Let no job that has been pushed begin to control this sweep; what to tell the person of one that waited.

    What is written says so to a job that an agent takes at this moment; one that is at work does not look.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    settings = load_settings(room)
    queue = settings.queue
    if settings.controller != "launch" or not isinstance(queue, LaunchQueue):
        return ""
    record = controller_record(room)
    if settings.store_url is not None:
        from sweep.store.remote import read_file

        shared = json.loads(read_file(settings.store_url, CONTROLLER_RECORD) or b"{}")
        if shared.get("number", 0) > record.get("number", 0):  # another machine has pushed the last
            record = shared
    if not record:
        return ""
    record_controller(room, {**record, "withdrawn": True})
    _share(room, settings)
    with suppress(SweepError):  # the mark is enough, and a controller at work is to be told though W&B does not answer
        if _take_off(make_api(queue, wandb_location(settings), job_name(settings)), record):
            return f"took the controller's job {record['run']} off the queue {queue.name}"
    return ""


def is_wanted(room: Room) -> bool:
    """Whether a job that is about to control this sweep may."""
    return not controller_record(room).get("withdrawn")


def _take_off(api: LaunchApi, record: Mapping[str, Any]) -> bool:
    """Take the last job off the queue; False where it does not wait there."""
    item = str(record.get("item", ""))
    waits = bool(item) and api.item_state(item) == "pending"
    if waits:
        api.delete_item(item)
    return waits


def _share(room: Room, settings: Settings) -> None:
    if settings.store_url is not None:
        from sweep.store.remote import put_file

        put_file(settings.store_url, CONTROLLER_RECORD, (room.root / CONTROLLER_RECORD).read_bytes())
