"""What a sweep's trials are in W&B: names, ids and the arguments of `wandb.init`, from the settings alone.

Invariants: pure; nothing here talks to W&B or reads a key. A run's id is a function of the sweep and the trial, so that
a restarted controller, another attempt and `sweep sync` all mean the same run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sweep.config.queues import LaunchQueue, WandbLocation
from sweep.config.settings import Settings
from sweep.config.torchtune import resolve
from sweep.errors import ConfigError
from trainer.components import ComponentError, check_path
from trainer.contract import Tracking, TrialSpec, encode

# torchtune's logger under its old and its new path.
LOGGER = "WandBLogger"
# What the logger's own keyword arguments and ours cannot both say.
OURS = ("_component_", "dir", "log_dir", "id", "resume", "reinit", "config", "mode")

# The longest name of a SageMaker training job; it has letters, digits and dashes.
SAGEMAKER_NAME = 63
# What SageMaker gives a job: environment variables, and characters of each. Of the variables W&B's agent sets these
# itself, beside those that carry the job's configuration; of that, so much is said of the job and not of its trials.
SAGEMAKER_VARIABLES, SAGEMAKER_CHARACTERS = 100, 512
AGENT_VARIABLES, JOB_CHARACTERS = 16, 600


def logger_arguments(torchtune: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the recipe's own `metric_logger` hands to `wandb.init`; None where it is not torchtune's WandBLogger."""
    logger = torchtune.get("metric_logger")
    if not isinstance(logger, Mapping) or not str(logger.get("_component_", "")).endswith(f".{LOGGER}"):
        return None
    return {"project": "torchtune", **{str(key): value for key, value in logger.items() if key != "_component_"}}


def mode(settings: Settings, env: Mapping[str, str] = os.environ) -> str:
    """online, offline or disabled: as `wandb.mode` says; where it does not, as the recipe's WandBLogger does."""
    if settings.wandb.mode is not None:
        return settings.wandb.mode
    if isinstance(settings.queue, LaunchQueue):
        return "online"
    logger = logger_arguments(settings.torchtune)
    if logger is None:
        return "disabled"
    said = str(logger.get("mode") or env.get("WANDB_MODE") or "online")
    return "offline" if said == "online" and settings.queue.offline else said


def wandb_location(settings: Settings) -> WandbLocation:
    logger = logger_arguments(settings.torchtune) or {}
    section = settings.wandb
    queue_project = settings.queue.project if isinstance(settings.queue, LaunchQueue) else None
    return WandbLocation(
        section.entity or logger.get("entity"),
        str(queue_project or section.project or logger.get("project") or "sweep"),
        str(section.group or logger.get("group") or settings.name),
    )


def run_id(settings: Settings, trial: int, stopped: Collection[str] = ()) -> str:
    """The id of a trial's run, the same for all its attempts; two sweeps of one name have different ones.

    Args:
        stopped: runs that W&B was asked to stop; a trial that goes on after that does so in a run of its own.
    """
    again = (f"{trial:05d}", *(f"{trial:05d}-{number}" for number in range(2, len(stopped) + 2)))
    return next(run for run in (_run(settings, of) for of in again) if run not in stopped)


def worker_run_id(settings: Settings, worker: str) -> str:
    """The id of the run of a Launch job that serves several trials."""
    return _run(settings, worker)


def adapter_name(settings: Settings) -> str:
    """The artifact whose versions are a sweep's adapters."""
    return f"{_plain(settings.name)}-adapter"


def tracking_of(
    settings: Settings, trial: int, config: Mapping[str, Any], stopped: Collection[str] = ()
) -> Tracking | None:
    """The W&B run of a trial with this resolved configuration; None where nothing is tracked.

    Args:
        stopped: see `run_id`.
    """
    chosen = mode(settings)
    if chosen == "disabled":
        return None
    section = settings.wandb
    return Tracking(
        run=run_id(settings, trial, stopped),
        mode=chosen,
        init=init_arguments(settings, f"{settings.name}-{trial}", section.job_type),
        adapter="" if section.artifacts == "none" else adapter_name(settings),
        inputs={} if section.artifacts == "none" else inputs_of(config),
        hook=section.hook or "",
        checkpoint=f"{run_id(settings, trial)}-checkpoint" if carries(settings) else "",
    )


def carries(settings: Settings) -> bool:
    """Whether W&B is all that the controller shares with its jobs."""
    return isinstance(settings.queue, LaunchQueue) and settings.queue.channel == "wandb"


def init_arguments(settings: Settings, name: str, job_type: str) -> dict[str, Any]:
    """Arguments of `wandb.init` for a run of this sweep, without id, mode and directory."""
    logger = logger_arguments(settings.torchtune) or {}
    where, section = wandb_location(settings), settings.wandb
    own = {key: value for key, value in logger.items() if key not in OURS}
    tags = [*dict.fromkeys([*own.pop("tags", []), *section.tags])]
    init = {**own, **section.init, "project": where.project, "group": where.group, "tags": tags}
    prefix = f"{own['name']}-" if own.get("name") else ""
    init |= {"name": prefix + name, "job_type": job_type or own.get("job_type")}
    return {**init, **({"entity": where.entity} if where.entity else {})}


def inputs_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The base model and the data that a configuration names, as artifacts by reference."""
    found: dict[str, Any] = {}
    base = (config.get("checkpointer") or {}).get("checkpoint_dir")
    if base:
        path = Path(str(base)).resolve()
        found[f"base-{_plain(path.name)}"] = {"type": "base-model", "uri": path.as_uri()}
    for key in ("dataset", "dataset_val"):
        for uri in _data_uris(config.get(key)):
            found[f"data-{_plain(uri.rstrip('/').rpartition('/')[2])}"] = {"type": "dataset", "uri": uri}
    return found


def check(settings: Settings) -> None:
    """Refuse what can be seen to be wrong without W&B.

    Raises:
        ConfigError: a hook outside the allow-list; an argument that is ours to give.
    """
    section = settings.wandb
    if taken := [key for key in section.init if key in (*OURS, "project", "entity", "group", "name", "tags")]:
        raise ConfigError(
            f"wandb.init.{taken[0]} is set by the sweep; use wandb.project, wandb.entity, wandb.group, "
            "wandb.job_type or wandb.tags, and wandb.init for other arguments of wandb.init"
        )
    if section.registry and mode(settings) == "disabled":
        raise ConfigError(f"wandb.registry={section.registry} needs W&B; set wandb=online (or offline, and sync later)")
    if isinstance(settings.queue, LaunchQueue):
        _check_launch(settings)
        if settings.queue.resource == "sagemaker":
            _check_sagemaker(settings, settings.queue)
    if section.hook:
        try:
            check_path("wandb.hook", section.hook, settings.recipe.components)
        except ComponentError as error:
            raise ConfigError(str(error)) from error


def _check_launch(settings: Settings) -> None:
    project = wandb_location(settings).project
    if project != project.lower():
        raise ConfigError(
            f"wandb.project={project}: Launch's agent writes a project in small letters, so the runs of its jobs would "
            f"be elsewhere; use {project.lower()}"
        )
    if mode(settings) != "online":
        raise ConfigError(
            f"wandb.mode={mode(settings)}, but a Launch queue's jobs are W&B runs; leave wandb=auto, or use "
            "wandb=online"
        )
    if carries(settings) and settings.wandb.artifacts == "none":
        raise ConfigError(
            "wandb.artifacts=none, but with queue.channel=wandb an adapter reaches you only as an artifact; "
            "set it to end"
        )


def _check_sagemaker(settings: Settings, queue: LaunchQueue) -> None:
    """Refuse more slots than a job can be given first trials for: they travel in its environment."""
    first = min(queue.worker_slots or 1, queue.trials_per_worker or math.inf)
    config = resolve(settings.torchtune, {}, {})
    spec = TrialSpec(
        settings.name, 0, 1, "w0001", config, settings.milestone_tokens, tracking=tracking_of(settings, 0, config)
    )
    variables = SAGEMAKER_VARIABLES - AGENT_VARIABLES - len(queue.template.get("Environment", {}))
    most = (variables * SAGEMAKER_CHARACTERS - JOB_CHARACTERS) // len(json.dumps(json.loads(encode(spec))))
    if 1 < first > most:
        raise ConfigError(
            f"queue.slots={queue.slots}: a SageMaker job has {SAGEMAKER_VARIABLES} environment variables of "
            f"{SAGEMAKER_CHARACTERS} characters, in which {first} trials of this recipe do not fit; set it to "
            f"{max(1, most)} at most"
        )


def _data_uris(dataset: Any) -> list[str]:
    parts = dataset if isinstance(dataset, list) else [dataset]
    found = []
    for part in parts:
        if not isinstance(part, Mapping):
            continue
        files = part.get("data_files")
        if isinstance(files, str):
            found.append(Path(files).resolve().as_uri())
        elif part.get("source"):
            found.append(f"hf://datasets/{part['source']}")
    return found


def _run(settings: Settings, of: str) -> str:
    """The id of a trial's or a worker's run.

    SageMaker names a job by its run, and takes fewer characters than W&B. Only for its queues ids are narrowed: where
    that changes one, no job ever ran under the other; so the runs of every sweep that there is keep their ids.
    """
    made = hashlib.sha256(f"{settings.name} {settings.created!r}".encode()).hexdigest()[:8]
    name = _plain(settings.name)[:40]
    if isinstance(settings.queue, LaunchQueue) and settings.queue.resource == "sagemaker":
        room = SAGEMAKER_NAME - len(f"-{made}-{of}")
        name = re.sub(r"[^A-Za-z0-9-]", "-", name)[:room].lstrip("-") or "x"
    return f"{name}-{made}-{of}"


def _plain(text: str) -> str:
    """Letters, digits, `_`, `.` and `-` only, as W&B wants its names."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.") or "x"
