"""The W&B runs of a sweep: their names, their ids and the arguments of `wandb.init`.

Invariants: pure functions of the settings; nothing here talks to W&B or reads a key. The id of a run is a function of
the sweep and the trial, so that a restarted controller, another attempt and `sweep sync` all mean the same run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config.paths import FORMATS, unescaped
from sweep.config.secrets import check_wandb
from sweep.config.settings import Settings
from sweep.errors import ConfigError
from trainer.components import ComponentError, check_path
from trainer.contract import Tracking
from trainer.environment import references

# The class name of torchtune's logger, below its old path and its new one.
LOGGER = "WandBLogger"
# Arguments of `wandb.init` that the sweep sets, whatever the logger's own section says.
OWN_ARGUMENTS = ("_component_", "dir", "log_dir", "id", "resume", "reinit", "config", "mode")


@dataclass(frozen=True, slots=True)
class WandbLocation:
    """Where W&B keeps the runs of a sweep.

    Args:
        entity: None: the default entity of the API key.
    """

    entity: str | None
    project: str
    group: str

    @property
    def path(self) -> str:
        """The project as W&B addresses it, `entity/project` or `project`."""
        return f"{self.entity}/{self.project}" if self.entity else self.project


def logger_arguments(torchtune: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the recipe's `metric_logger` passes to `wandb.init`; None if it is not torchtune's WandBLogger."""
    logger = torchtune.get("metric_logger")
    if not isinstance(logger, Mapping) or not str(logger.get("_component_", "")).endswith(f".{LOGGER}"):
        return None
    return {"project": "torchtune", **{str(key): value for key, value in logger.items() if key != "_component_"}}


def mode(settings: Settings, env: Mapping[str, str] = os.environ) -> str:
    """online, offline or disabled.

    That is `wandb.mode` if it is set; otherwise online if the queue's jobs are runs, what the recipe's WandBLogger and
    the environment say, or disabled without one.
    """
    if settings.wandb.mode is not None:
        return settings.wandb.mode
    if settings.queue.jobs_are_runs:
        return "online"
    logger = logger_arguments(settings.torchtune)
    if logger is None:
        return "disabled"
    logger_mode = str(logger.get("mode") or env.get("WANDB_MODE") or "online")
    return "offline" if logger_mode == "online" and settings.queue.offline else logger_mode


def wandb_location(settings: Settings) -> WandbLocation:
    """Where the runs of a sweep are: as the queue, the section `wandb` or the recipe's WandBLogger says."""
    logger = logger_arguments(settings.torchtune) or {}
    section = settings.wandb
    return WandbLocation(
        section.entity or logger.get("entity"),
        str(settings.queue.wandb_project or section.project or logger.get("project") or "sweep"),
        str(section.group or logger.get("group") or settings.name),
    )


def run_id(settings: Settings, trial: int, stopped: Collection[str] = ()) -> str:
    """The id of the run of a trial, which all its attempts share. Two sweeps of one name have different ids.

    Args:
        stopped: runs that W&B was asked to stop. A trial that goes on after such a request gets another run.
    """
    suffixes = (f"{trial:05d}", *(f"{trial:05d}-{number}" for number in range(2, len(stopped) + 2)))
    return next(run for run in (_run_id(settings, suffix) for suffix in suffixes) if run not in stopped)


def worker_run_id(settings: Settings, worker: str) -> str:
    """The id of the run of a job that serves several trials."""
    return _run_id(settings, worker)


def adapter_name(settings: Settings) -> str:
    """The artifact whose versions are the adapters of a sweep."""
    return f"{_plain(settings.name)}-adapter"


def tracking_of(
    settings: Settings, trial: int, config: Mapping[str, Any], stopped: Collection[str] = ()
) -> Tracking | None:
    """The W&B run of a trial with this resolved configuration; None if nothing is tracked.

    Args:
        stopped: see `run_id`.
    """
    current_mode = mode(settings)
    if current_mode == "disabled":
        return None
    section = settings.wandb
    return Tracking(
        run=run_id(settings, trial, stopped),
        mode=current_mode,
        init=init_arguments(settings, f"{settings.name}-{trial}", section.job_type),
        adapter="" if section.artifacts == "none" else adapter_name(settings),
        inputs={} if section.artifacts == "none" else inputs_of(config),
        hook=section.hook or "",
        checkpoint=f"{run_id(settings, trial)}-checkpoint" if settings.queue.reports_over_wandb else "",
    )


def init_arguments(settings: Settings, name: str, job_type: str) -> dict[str, Any]:
    """Arguments of `wandb.init` for a run of this sweep, without id, mode and directory."""
    logger = logger_arguments(settings.torchtune) or {}
    location, section = wandb_location(settings), settings.wandb
    arguments = {key: value for key, value in logger.items() if key not in OWN_ARGUMENTS}
    tags = [*dict.fromkeys([*arguments.pop("tags", []), *section.tags])]
    init = {**arguments, **section.init, "project": location.project, "group": location.group, "tags": tags}
    prefix = f"{arguments['name']}-" if arguments.get("name") else ""
    init |= {"name": prefix + name, "job_type": job_type or arguments.get("job_type")}
    return {**init, **({"entity": location.entity} if location.entity else {})}


def inputs_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The base model and the data that a configuration names, as artifacts by reference: type and URI by name.

    A path that refers to an environment variable is left out, since its value is not tracked.
    """
    inputs: dict[str, Any] = {}
    base = (config.get("checkpointer") or {}).get("checkpoint_dir")
    if base and not any(references(base)):
        path = Path(str(base)).resolve()
        inputs[f"base-{_plain(path.name)}"] = {"type": "base-model", "uri": path.as_uri()}
    for key in ("dataset", "dataset_val"):
        for uri in _data_uris(config.get(key)):
            inputs[f"data-{_plain(uri.rstrip('/').rpartition('/')[2])}"] = {"type": "dataset", "uri": uri}
    return inputs


def check(settings: Settings) -> None:
    """Refuse what is wrong without any doubt before W&B is asked.

    Raises:
        ConfigError: a hook outside the allow-list, an argument that the sweep sets, or a registry without W&B.
    """
    section = settings.wandb
    reserved = (*OWN_ARGUMENTS, "project", "entity", "group", "name", "tags")
    if clashes := [key for key in section.init if key in reserved]:
        raise ConfigError(
            f"wandb.init.{clashes[0]} is set by the sweep; use wandb.project, wandb.entity, wandb.group, "
            "wandb.job_type or wandb.tags, and wandb.init for other arguments of wandb.init"
        )
    check_wandb(section.init, "wandb.init")
    check_wandb(logger_arguments(settings.torchtune) or {}, "metric_logger")
    if section.registry and mode(settings) == "disabled":
        raise ConfigError(f"wandb.registry={section.registry} needs W&B; set wandb=online (or offline, and sync later)")
    if section.hook:
        try:
            check_path("wandb.hook", section.hook, settings.recipe.components)
        except ComponentError as error:
            raise ConfigError(str(error)) from error


def _data_uris(dataset: Any) -> Iterator[str]:
    for part in dataset if isinstance(dataset, list) else [dataset]:
        if not isinstance(part, Mapping):
            continue
        files, source = part.get("data_files"), part.get("source")
        if any(references([files, source])):
            continue
        if isinstance(files, str) and source in (None, *FORMATS):
            yield Path(unescaped(files)).resolve().as_uri()
        elif isinstance(source, str) and source.startswith("/"):
            yield Path(source).as_uri()
        elif source and source not in FORMATS:
            yield f"hf://datasets/{source}"


def _run_id(settings: Settings, suffix: str) -> str:
    """The id of a run of this sweep; the suffix tells its trial or worker.

    Some services name a job by its run and take fewer characters than W&B. Ids are narrowed for their queues only, on
    which no job ever ran under the wider id. So the runs of all other sweeps keep the ids that they had.
    """
    creation = f"{settings.name} {settings.created!r}{settings.token}"
    token = hashlib.sha256(creation.encode()).hexdigest()[:8]
    name = _plain(settings.name)[:40]
    if (longest := settings.queue.max_run_id) is not None:
        characters = longest - len(f"-{token}-{suffix}")
        name = re.sub(r"[^A-Za-z0-9-]", "-", name)[:characters].lstrip("-") or "x"
    return f"{name}-{token}-{suffix}"


def _plain(text: str) -> str:
    """Letters, digits, `_`, `.` and `-` only, which W&B allows in names."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.") or "x"
