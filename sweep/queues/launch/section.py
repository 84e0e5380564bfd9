"""The section `queue` for a queue of W&B Launch.

Invariant: a field has W&B's name if W&B has one for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sweep.config.queues import Queue
from sweep.config.ranges import PAUSE, POSITIVE, Range
from sweep.errors import ConfigError

if TYPE_CHECKING:
    from sweep.config.settings import Settings

RESOURCES = ("kubernetes", "sagemaker", "gcp-vertex", "local-container", "local-process")
CHANNELS = ("room", "wandb")
# The length of the name of a SageMaker training job, at most; it has letters, digits and dashes.
SAGEMAKER_NAME = 63


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 64 and not set(value) & set("/:")


@dataclass
class LaunchQueue(Queue):
    """Workers that are jobs of a W&B Launch queue, which agents take and start.

    Args:
        trials_per_worker: trials of one job. 1: a job for each trial.
        name: name of the queue in W&B.
        entity: user or team that owns the queue. null: that of the section `wandb`, otherwise W&B's default.
        project: project of the jobs' runs. null: that of the section `wandb`.
        project_queue: project that owns the queue. null: the one in which W&B keeps queues (model-registry).
        resource: where the agent starts jobs: kubernetes, sagemaker, gcp-vertex, local-container or local-process.
        job: job artifact that is pushed, `entity/project/job-NAME:latest`. null: the one that `sweep queue job` makes.
        docker_image: image that is pushed instead of a job artifact; not for local-process.
        priority: 0 critical, 1 high, 2 medium, 3 low. It counts only if the queue has `prioritization`.
        variables: values of the queue's template variables, for each push.
        resource_args: replaces the queue's `template` at each push, by resource; not together with `variables`.
        template: resource configuration that `sweep queue create` gives the queue. `{{name}}` stands for a template
            variable; what the agent fills in is written with a backslash: `\\${image_uri}`.
        template_variables: mapping by name with `schema` (a JSON schema with its default) and `description`.
        prioritization: whether the queue takes priorities into account.
        max_jobs: jobs that one agent runs at once. -1: no limit.
        channel: how reports and stops travel. room: a file system or an object store; wandb: W&B only.
        room: directory below which jobs see the room of the sweep, by its name: a path, or the URL of an object store.
            null: jobs see it at the same path as the controller.
        query_seconds: seconds between two queries of W&B, at least.
        pending_seconds: seconds after which a pushed job that has not started is withdrawn and pushed again. null: it
            waits.
    """

    kind: str = "launch"
    workers: int | None = 4
    trials_per_worker: int | None = 1
    name: str = "sweep"
    entity: str | None = None
    project: str | None = None
    project_queue: str | None = None
    resource: str = "local-process"
    job: str | None = None
    docker_image: str | None = None
    priority: int = 2
    variables: dict[str, Any] = field(default_factory=dict)
    resource_args: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    template_variables: dict[str, Any] = field(default_factory=dict)
    prioritization: bool = True
    max_jobs: int = 1
    channel: str = "room"
    room: str | None = None
    query_seconds: float = 10.0
    pending_seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        **Queue.RANGES,
        "name": (_is_name, "1 to 64 characters without / and :"),
        "resource": (lambda value: value in RESOURCES, f"one of {', '.join(RESOURCES)}"),
        "channel": (lambda value: value in CHANNELS, " or ".join(CHANNELS)),
        "priority": (lambda value: 0 <= value <= 3, "0 (critical), 1 (high), 2 (medium) or 3 (low)"),
        "max_jobs": (lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit"),
        "query_seconds": PAUSE,
        "pending_seconds": POSITIVE,
    }
    PROGRAMS: ClassVar[tuple[str, ...]] = (*Queue.PROGRAMS, "docker_image", "job", "resource_args", "template")

    @property
    def on_this_machine(self) -> bool:
        return False

    @property
    def own_interpreter(self) -> bool:
        return True

    @property
    def jobs_are_runs(self) -> bool:
        return True

    @property
    def wandb_project(self) -> str | None:
        return self.project

    @property
    def max_run_id(self) -> int | None:
        return SAGEMAKER_NAME if self.resource == "sagemaker" else None

    @property
    def reports_over_wandb(self) -> bool:
        return self.channel == "wandb"

    def store_url(self, sweep: str) -> str | None:
        if self.channel == "room" and self.room and "://" in self.room:
            return f"{self.room.rstrip('/')}/{sweep}"
        return None

    def room_in_jobs(self, root: Path) -> str:
        return f"{self.room.rstrip('/')}/{root.name}" if self.room else str(root)

    def for_evaluations(self, sweep: str) -> Self:
        section = super().for_evaluations(sweep)
        return replace(section, room=f"{self.room.rstrip('/')}/{sweep}") if self.room else section

    def check_section(self) -> None:
        from sweep.queues.launch.template import check_launch

        check_launch(self)


def is_launch(settings: Settings) -> bool:
    """Whether the jobs of a sweep go to a W&B Launch queue."""
    return isinstance(settings.queue, LaunchQueue)


def launch_queue(settings: Settings) -> LaunchQueue:
    """The section of the Launch queue of a sweep.

    Raises:
        ConfigError: the queue is of another kind.
    """
    if not isinstance(settings.queue, LaunchQueue):
        raise ConfigError(
            f"queue.kind={settings.queue.kind} has nothing in W&B; "
            "choose a Launch queue, e.g. queue=launch_local_process"
        )
    return settings.queue
