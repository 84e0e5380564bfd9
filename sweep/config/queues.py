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
    """Where the workers of a sweep run.

    Args:
        kind: the kind of queue: local, slurm, launch or simulated.
        workers: workers that run at once. null (queue=local only): one per GPU, or one per core if the recipe trains
            on the CPU.
        slots: trials that one worker trains side by side. auto: the worker raises the number while that makes it
            faster.
        trials_per_worker: trials after which a worker ends. null: no limit.
        threads: OMP_NUM_THREADS of a worker. null: its share of the cores on this machine, `cpus_per_task` on SLURM.
        env: further environment variables of a worker. They are frozen into the room, so do not put secrets here.
        offline: workers have no internet. Hugging Face and W&B are set to offline, and the sweep checks before its
            first job that everything a trial needs is on this machine.
        idle_seconds: seconds without an assignment after which a worker ends by itself.
        silence_seconds: seconds without a heartbeat after which the job of a worker is cancelled.
        start_seconds: seconds between the start of a job and the first heartbeat of its worker, at most.
        stop_grace_seconds: seconds that a trial may take to obey a stop before the job of its worker is cancelled.
        poll_seconds: seconds between two observations of the room.
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
    """What a SLURM job requests, in submitit's words. null: the cluster's default.

    Args:
        timeout_min: time limit of the job, in minutes. A worker stops with checkpoints before it, and is replaced.
        cpus_per_task: processors of a job.
        gpus_per_node: GPUs of a job.
        mem_gb: memory of a job, in GiB.
        slurm_account: account that is charged.
        slurm_additional_parameters: further options of sbatch, by name without dashes.
        slurm_array_parallelism: jobs of one array that run at once, at most.
        slurm_comment: comment of a job.
        slurm_constraint: features that a node must have.
        slurm_cpus_per_gpu: processors for each GPU.
        slurm_dependency: jobs that must start or end first.
        slurm_exclude: nodes that are not used.
        slurm_exclusive: whether a job has its node to itself.
        slurm_gpus_per_task: GPUs of a job's task.
        slurm_gres: generic resources, such as `gpu:a100:1`.
        slurm_mail_type: events for which SLURM sends mail.
        slurm_mail_user: address of that mail.
        slurm_mem: memory of a job, in SLURM's notation; it replaces `mem_gb`.
        slurm_mem_per_cpu: memory for each processor.
        slurm_mem_per_gpu: memory for each GPU.
        slurm_nodelist: nodes that are used.
        slurm_partition: partition of the jobs.
        slurm_qos: quality of service of the jobs.
        slurm_setup: lines of the batch script before the command.
        slurm_signal_delay_s: seconds before the time limit at which a worker is signalled to end.
        slurm_srun_args: further arguments of srun.
        slurm_teardown: lines of the batch script after the command.
        slurm_wckey: workload characterization key of the jobs.
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
    """Workers that are jobs of a SLURM cluster.

    Args:
        python: the interpreter on the nodes, or a command that starts one (a container). null: the one that runs
            `sweep`.
        query_seconds: seconds between two queries of the scheduler, at least.
        controller: submitit's words for the controller's own job (`sweep run --detach`). It takes the partition, the
            account, the QOS and the setup lines of the queue unless they are set here.
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
    """What a simulated world does to workers and trials.

    Args:
        trial_seconds: seconds of a whole trial that is alone on a worker of speed 1.
        slot_cost: share by which a trial takes longer for each other trial in its worker.
        startup_seconds: seconds from the start of a job until its worker is ready.
        wait_seconds: mean seconds that a job waits in the queue before it starts.
        startup_spread: spread of the start-up times.
        speed_spread: spread of the speeds of the workers.
        stragglers: share of attempts that are slowed down by `straggler_factor`.
        straggler_factor: how many times longer such an attempt takes.
        crashes: share of attempts during which the worker is lost.
        preemptions: share of attempts during which the worker is signalled to end.
        stop_seconds: seconds until a running trial obeys a stop.
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
    """Simulated workers that replay recorded curves in simulated time (docs/simulated.md).

    Args:
        table: path of the curves, a .npz file.
        columns: torchtune keys by array of the table, for arrays whose key the program does not know.
        seed: seed of everything that happens to workers and trials.
        look_seconds: seconds until a controller that waits observes what has happened.
        charge: whether the time that the study takes to propose and to judge passes on the simulated clock too.
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
