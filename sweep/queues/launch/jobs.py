"""The run configuration of a Launch job, and the id of its run.

Invariants: pure. The specifications of the trials that a job begins with are part of its run's configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.config.settings import Settings
from sweep.queues.launch.section import LaunchQueue, launch_queue
from sweep.tracking.runs import init_arguments, wandb_location, worker_run_id
from trainer.contract import JOB_KEY, TrialSpec, encode
from trainer.room import Room

# The time limit of a Launch job, in seconds: none is known.
ENDLESS_SECONDS = 1e9


def job_name(settings: Settings) -> str:
    """The job artifact that is pushed: that of the section, otherwise the one that `sweep queue job` creates."""
    queue = launch_queue(settings)
    return queue.job or f"{wandb_location(settings).path}/job-{queue.name}:latest"


def one_trial(queue: LaunchQueue) -> bool:
    """Whether each job trains one trial, so that the job's run is the trial's."""
    return queue.trials_per_worker == 1


def run_of(settings: Settings, worker: str, specs: Sequence[TrialSpec]) -> str:
    """The id of a job's run: that of its only trial, or one of its own."""
    queue = launch_queue(settings)
    if one_trial(queue) and specs and specs[0].tracking is not None:
        return specs[0].tracking.run
    return worker_run_id(settings, worker)


def payload(settings: Settings, room: Room, worker: str, specs: Sequence[TrialSpec], gpu: bool) -> dict[str, Any]:
    """The run configuration of a job, as `trainer.entry.launch_job.JobSpec` reads it.

    Args:
        specs: the specifications of the trials that the job begins with.
        gpu: whether the job trains on CUDA.
    """
    queue = launch_queue(settings)
    own_run = not one_trial(queue)
    job: dict[str, Any] = {
        "worker": worker,
        "channel": queue.channel,
        "room": "" if queue.reports_over_wandb else queue.room_in_jobs(room.root),
        "options": {
            "trials": queue.trials_per_worker or 0,
            "idle_seconds": queue.idle_seconds,
            "slots": queue.worker_slots,
            **({"token": settings.token} if settings.token else {}),
            "seconds": ENDLESS_SECONDS,
            "gpu": gpu,
            "env": {"OMP_NUM_THREADS": str(queue.threads or 1), "PYTHONUNBUFFERED": "1", **queue.worker_env},
        },
        "specs": [json.loads(encode(spec)) for spec in specs],
        "run": worker_run_id(settings, worker) if own_run else "",
        "init": _init(settings, worker),
        "more": own_run and queue.trials_per_worker != len(specs),
    }
    return {JOB_KEY: job}


def _init(settings: Settings, worker: str) -> Mapping[str, Any]:
    init = init_arguments(settings, f"{settings.name}-{worker}", "worker")
    return {key: init[key] for key in ("project", "entity", "group", "name", "job_type", "tags") if key in init}
