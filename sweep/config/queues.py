"""The queues' sections of a configuration as typed values: this machine, SLURM in submitit's words, W&B Launch, and a
simulation.

Invariant: a value that exists is valid in itself. The fields of `Submitit` are the words of submitit's `AutoExecutor`
and mean what they mean there; those that only we may set (the name, the log, one task on one node) are left out.
Those of `LaunchQueue` are W&B's words where W&B has one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

# What keeps Hugging Face's libraries and W&B from asking the internet.
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}


@dataclass
class Queue:
    """Where jobs run.

    Args:
        kind: local, slurm, launch or simulated.
        workers: how many at once; null: one per GPU, or one per core where the recipe trains on the CPU (local only).
        slots: trials side by side in one worker; auto: as many as pay, measured by the worker while they train.
        trials_per_worker: trials after which a worker ends; null: no limit.
        threads: OMP_NUM_THREADS of a worker; null: the cores shared out evenly, or cpus_per_task.
        env: further environment variables of a worker; no secrets, they are frozen into the room.
        offline: workers have no internet: Hugging Face and W&B are set to offline, and what a trial needs is looked
            for before the first job.
        idle_seconds: how long a worker waits for an assignment before it ends by itself.
        silence_seconds: how long a beat may be missing before the worker's job is cancelled.
        start_seconds: how long a worker may take until it is ready, from when its job runs.
        stop_grace_seconds: how long a trial may take to obey a stop before its worker's job is cancelled.
        poll_seconds: pause between two looks at the room.
    """

    kind: str = "local"
    workers: int | None = None
    slots: int | str = 1
    trials_per_worker: int | None = None
    threads: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    offline: bool = False
    idle_seconds: float = 900.0
    silence_seconds: float = 120.0
    start_seconds: float = 600.0
    stop_grace_seconds: float = 60.0
    poll_seconds: float = 0.2

    @property
    def worker_slots(self) -> int:
        """What a worker is told: 0 for a number that it chooses by measuring."""
        return 0 if self.slots == "auto" else int(self.slots)

    @property
    def worker_env(self) -> dict[str, str]:
        """Variables that each worker gets, and whoever looks whether it could train."""
        return {**(OFFLINE_ENV if self.offline else {}), **self.env}


@dataclass
class Submitit:
    """What a SLURM job asks for, in submitit's words; null: the cluster's default.

    Args:
        timeout_min: the job's time limit; a worker stops with checkpoints before it, and is replaced.
        slurm_setup, slurm_teardown: lines of the batch script before and after the command.
        slurm_array_parallelism: how many jobs of one array may run at once.
        slurm_signal_delay_s: how long before its time limit a worker is told to end.
        slurm_additional_parameters: further options of sbatch, by name without dashes.
    """

    timeout_min: int = 60
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    slurm_account: str | None = None
    slurm_additional_parameters: dict[str, Any] = field(default_factory=dict)
    slurm_array_parallelism: int = 256
    slurm_comment: str | None = None
    slurm_constraint: str | None = None
    slurm_cpus_per_gpu: int | None = None
    slurm_dependency: str | None = None
    slurm_exclude: str | None = None
    slurm_exclusive: bool | None = None
    slurm_gpus_per_task: int | None = None
    slurm_gres: str | None = None
    slurm_mail_type: str | None = None
    slurm_mail_user: str | None = None
    slurm_mem: str | None = None
    slurm_mem_per_cpu: str | None = None
    slurm_mem_per_gpu: str | None = None
    slurm_nodelist: str | None = None
    slurm_partition: str | None = None
    slurm_qos: str | None = None
    slurm_setup: list[str] = field(default_factory=list)
    slurm_signal_delay_s: int = 90
    slurm_srun_args: list[str] = field(default_factory=list)
    slurm_teardown: list[str] = field(default_factory=list)
    slurm_wckey: str | None = None

    @property
    def asks_for_gpus(self) -> bool:
        words = [self.gpus_per_node, self.slurm_gpus_per_task, self.slurm_gres]
        extra = {str(key).lstrip("-").replace("_", "-") for key in self.slurm_additional_parameters}
        return any(words) or bool(extra & {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"})


@dataclass
class SlurmQueue(Queue, Submitit):
    """Jobs of a SLURM cluster.

    Args:
        python: the interpreter on the nodes, or a command that runs one (a container); null: this one.
        query_seconds: at least so long between two questions to the scheduler.
        controller: submitit's words for the controller's own job (`sweep run --detach`); what is not said here is
            taken from the queue's partition, account, QOS and setup.
    """

    kind: str = "slurm"
    python: str | None = None
    query_seconds: float = 10.0
    controller: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Submitit:
        """What a worker's job asks for."""
        return Submitit(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Submitit)})


@dataclass
class LaunchQueue(Queue):
    """A queue of W&B Launch, on which agents find jobs.

    Args:
        trials_per_worker: 1, a job for each trial, unless said otherwise.
        name: the queue's name in W&B.
        entity: the user or team that owns the queue; null: that of the `wandb` group, or W&B's default.
        project: where the runs of the jobs are; null: that of the `wandb` group.
        project_queue: the project that owns the queue; null: W&B's own for queues (model-registry).
        resource: where the agent starts jobs: kubernetes, sagemaker, gcp-vertex, local-container or local-process.
        job: the job artifact to push, `entity/project/job-NAME:latest`; null: the one that `sweep queue job` makes.
        docker_image: an image to push in the place of a job; not for local-process.
        priority: 0 critical, 1 high, 2 medium, 3 low; heeded where the queue has `prioritization`.
        variables: values of the queue's template variables, for each push.
        resource_args: what a push puts in the place of the queue's `template`, by resource; not beside `variables`.
        template: the resource configuration that `sweep queue create` gives the queue. `{{name}}` stands for a
            template variable, and what the agent fills in is written with a backslash: `\\${image_uri}`.
        template_variables: by name a mapping with `schema` (a JSON schema with its default) and `description`.
        prioritization: whether the queue heeds priorities.
        max_jobs: jobs that one agent runs at once.
        channel: how reports and stops travel: room (a file system or an object store) or wandb.
        room: the directory below which jobs see the sweep's room, by its name: a path, or the URL of an object store;
            null: at the same path as the controller.
        query_seconds: at least so long between two questions to W&B.
        pending_seconds: a pushed job that has not started after so long is given up and pushed anew; null: it waits.
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


@dataclass(frozen=True, slots=True)
class WandbLocation:
    """Where a sweep's runs are: entity (None: the key's own), project and group."""

    entity: str | None
    project: str
    group: str

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}" if self.entity else self.project


@dataclass
class SimulationModel:
    """What a simulated world does to workers and trials. Shares are of attempts, spreads are of the logarithm.

    Args:
        trial_seconds: a whole trial by itself on a worker of speed 1.
        slot_cost: how much longer a trial takes for each other one beside it in its worker, as a share.
        startup_seconds: from a job's start until the worker is ready.
        wait_seconds: in the queue before that, on average.
        startup_spread, speed_spread: standard deviations of the logarithms of start-up times and speeds.
        stragglers, straggler_factor: attempts that take so many times longer.
        crashes: attempts during which their worker dies; preemptions: during which it is told to end.
        stop_seconds: until a running trial obeys a stop.
    """

    trial_seconds: float = 600.0
    slot_cost: float = 0.05
    startup_seconds: float = 20.0
    startup_spread: float = 0.3
    wait_seconds: float = 0.0
    speed_spread: float = 0.1
    stragglers: float = 0.0
    straggler_factor: float = 4.0
    crashes: float = 0.0
    preemptions: float = 0.0
    stop_seconds: float = 0.5


@dataclass
class SimulatedQueue(Queue, SimulationModel):
    """Simulated workers over recorded curves, in simulated time (docs/simulated.md).

    Args:
        table: the curves, a .npz file.
        columns: array of the table to torchtune key, beside those that are known.
        seed: of everything that happens to workers and trials.
        look_seconds: until a controller that waits sees what has happened.
        charge: the time that the study takes to ask and to judge passes on the simulated clock too.
    """

    kind: str = "simulated"
    workers: int | None = 8
    table: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    look_seconds: float = 0.2
    charge: bool = True
    poll_seconds: float = 60.0

    @property
    def simulation_model(self) -> SimulationModel:
        """What happens to workers and trials."""
        return SimulationModel(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SimulationModel)})


RESOURCES = ("kubernetes", "sagemaker", "gcp-vertex", "local-container", "local-process")
CHANNELS = ("room", "wandb")
KINDS: dict[str, type[Queue]] = {
    "local": Queue,
    "slurm": SlurmQueue,
    "launch": LaunchQueue,
    "simulated": SimulatedQueue,
}
# What the controller's own job takes from its queue where `queue.controller` does not say it.
SHARED_WORDS = ("slurm_account", "slurm_partition", "slurm_qos", "slurm_setup")
CONTROLLER_WORDS: dict[str, Any] = {"timeout_min": 1440, "cpus_per_task": 1, "mem_gb": 2, "slurm_signal_delay_s": 120}
