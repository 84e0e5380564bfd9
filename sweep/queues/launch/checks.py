"""Checks of a whole sweep that is to run on a W&B Launch queue.

Invariant: pure; what the section of the queue says by itself is checked in `template`.
"""

from __future__ import annotations

import json
import math

from sweep.config.settings import Settings
from sweep.config.torchtune import resolve
from sweep.errors import ConfigError
from sweep.queues.launch.section import LaunchQueue, launch_queue
from sweep.tracking.runs import mode, tracking_of, wandb_location
from trainer.contract import TrialSpec, encode

# What SageMaker gives a job: environment variables, and characters of each. Some of the variables are set by W&B's
# agent; and of the variables that carry the job's configuration, some characters describe the job and not its trials.
SAGEMAKER_VARIABLES, SAGEMAKER_CHARACTERS = 100, 512
AGENT_VARIABLES, JOB_CHARACTERS = 16, 640
# A sampled number may be so much longer than the recipe's own: a float has up to 24 characters.
NUMBER_CHARACTERS = 24


def check_settings(settings: Settings) -> None:
    """Refuse settings with which no job of the queue could run.

    Raises:
        ConfigError: with the key, its value and what is allowed.
    """
    queue = launch_queue(settings)
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
    if queue.reports_over_wandb and settings.wandb.artifacts == "none":
        raise ConfigError(
            "wandb.artifacts=none, but with queue.channel=wandb an adapter reaches you only as an artifact; "
            "set it to end"
        )
    if queue.resource == "sagemaker":
        _check_sagemaker(settings, queue)


def _check_sagemaker(settings: Settings, queue: LaunchQueue) -> None:
    """Refuse more slots than a job can be given first trials for: these travel in its environment."""
    first = min(queue.worker_slots or 1, queue.trials_per_worker or math.inf)
    config = resolve(settings.torchtune, {}, {}, settings.directory)
    tracking = tracking_of(settings, 0, config)
    spec = TrialSpec(settings.name, 0, 1, "w0001", config, settings.milestone_tokens, tracking=tracking)
    variables = SAGEMAKER_VARIABLES - AGENT_VARIABLES - len(queue.template.get("Environment", {}))
    each = len(json.dumps(json.loads(encode(spec)))) + NUMBER_CHARACTERS * len(settings.space.parameters)
    most = (variables * SAGEMAKER_CHARACTERS - JOB_CHARACTERS) // each
    if 1 < first > most:
        raise ConfigError(
            f"queue.slots={queue.slots}: a SageMaker job has {SAGEMAKER_VARIABLES} environment variables of "
            f"{SAGEMAKER_CHARACTERS} characters, in which {first} trials of this recipe do not fit; set it to "
            f"{max(1, most)} at most"
        )
