"""The controller as a job of the sweep's own W&B Launch queue: `sweep run controller=launch`.

Invariants:
- The room outlives the job, so it is in an object store or on a file system that jobs see.
- The person's machine releases the room before the job is pushed. The room's lock and the store's lease keep a second
  controller out.
- `controller.json` names the last job. A stop marks that job as withdrawn before it does anything else. A job reads the
  mark once it holds the room and before it acts, so that a job that waited does not resume a stopped sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sweep.config.settings import Settings
from sweep.errors import ConfigError, SweepError
from sweep.queues.controller_job import CONTROLLER_RECORD, checked_record, controller_record, record_controller
from sweep.queues.launch.api import LaunchApi, Push
from sweep.queues.launch.jobs import job_name
from sweep.queues.launch.section import is_launch, launch_queue
from sweep.queues.launch.wandb_api import make_api
from sweep.tracking.runs import init_arguments, wandb_location, worker_run_id
from sweep.wiring.rooms import load_settings, settled
from trainer import logs
from trainer.contract import JOB_KEY
from trainer.room import Room


def check_controller(settings: Settings) -> None:
    """Refuse settings with which the controller cannot be a Launch job.

    Raises:
        ConfigError: the queue is not one of W&B Launch, or the room would end with the job.
    """
    if not is_launch(settings):
        raise ConfigError("controller=launch needs a queue of W&B Launch; use --detach on this machine and on SLURM")
    if settings.queue.reports_over_wandb:
        raise ConfigError(
            "controller=launch with queue.channel=wandb: the sweep's room would end with the controller's job; set "
            "queue.channel=room, and queue.room to a path or URL that jobs see"
        )


def push_controller(room: Room) -> str:
    """Push the controller's job; returns what to tell the person.

    Raises:
        ConfigError: see `check_controller`. RetryLater: W&B or the store does not answer. GiveUp: W&B refuses.
    """
    settings = load_settings(room)
    check_controller(settings)
    queue = launch_queue(settings)
    api = make_api(queue, wandb_location(settings), job_name(settings))
    with settled(room):
        record = controller_record(room)
        _withdraw_item(api, record)
        number = int(record.get("number", 0)) + 1
        run = worker_run_id(settings, f"controller-{number}")
        record_controller(room, {"number": number, "run": run})
    init = init_arguments(settings, f"{settings.name}-controller", "controller")
    job = {
        "controller": queue.room_in_jobs(room.root),
        "run": run,
        "options": {"env": logs.inherited_env(), "token": settings.token},
        "init": {key: init[key] for key in ("project", "entity", "group", "name", "job_type", "tags") if key in init},
    }
    item = api.push(Push(run, f"{settings.name}-controller", {JOB_KEY: job}))
    record_controller(room, {"number": number, "run": run, "item": item})
    with suppress(SweepError):  # it is pushed; without the store's answer only this machine can withdraw it
        _share(room, settings)
    how = f"`sweep status {settings.name}`, `sweep stop {settings.name}`, `sweep best {settings.name}`"
    path = f"{wandb_location(settings).path}/{run}"
    return f"{settings.name} is controlled by a job of the queue {queue.name}, run {path}; {how}"


def withdraw_controller(room: Room) -> str:
    """Keep pushed jobs from beginning to control this sweep; returns what to tell the person of one that waited.

    A job that an agent takes at this moment reads the mark in the room; a controller that is running does not.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    settings = load_settings(room)
    if settings.controller != "launch" or not is_launch(settings):
        return ""
    queue = launch_queue(settings)
    record = controller_record(room)
    if settings.store_url is not None:
        from sweep.store.remote import read_file

        shared = checked_record(read_file(settings.store_url, CONTROLLER_RECORD) or b"{}")
        if shared.get("number", 0) > record.get("number", 0):  # another machine pushed the last job
            record = shared
    if not record:
        return ""
    record_controller(room, {**record, "withdrawn": True})
    _share(room, settings)
    with suppress(SweepError):  # the mark is enough; a running controller is stopped even if W&B does not answer
        if _withdraw_item(make_api(queue, wandb_location(settings), job_name(settings)), record):
            return f"took the controller's job {record['run']} off the queue {queue.name}"
    return ""


def is_wanted(room: Room) -> bool:
    """Whether the job of this process may control this sweep: it was not withdrawn."""
    return not controller_record(room).get("withdrawn")


def _withdraw_item(api: LaunchApi, record: Mapping[str, Any]) -> bool:
    """Take the last job off the queue; returns whether it waited there."""
    item = str(record.get("item", ""))
    waits = bool(item) and api.item_state(item) == "pending"
    if waits:
        api.delete_item(item)
    return waits


def _share(room: Room, settings: Settings) -> None:
    if settings.store_url is not None:
        from sweep.store.remote import put_file

        put_file(settings.store_url, CONTROLLER_RECORD, (room.root / CONTROLLER_RECORD).read_bytes())
