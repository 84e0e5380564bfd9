"""The queues' sections of a configuration as typed values: this machine, SLURM in submitit's words, and a simulation.

Invariant: a value that exists is valid in itself. The fields of `Submitit` are the words of submitit's `AutoExecutor`
and mean what they mean there; those that only we may set (the name, the log, one task on one node) are left out.
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
        kind: local, slurm or simulated.
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
class SimulatedQueue(Queue):
    """Simulated workers over recorded curves, in simulated time (docs/simulated.md).

    Args:
        table: the curves, a .npz file.
        columns: array of the table to torchtune key, beside those that are known.
        seed: of everything that happens to workers and trials.
        trial_seconds … stop_seconds: see `sweep.simulation.Fates`.
        look_seconds: until a controller that waits sees what has happened.
        charge: the time that the study takes to ask and to judge passes on the simulated clock too.
    """

    kind: str = "simulated"
    workers: int | None = 8
    table: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    seed: int = 0
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
    look_seconds: float = 0.2
    charge: bool = True
    poll_seconds: float = 60.0


KINDS: dict[str, type[Queue]] = {"local": Queue, "slurm": SlurmQueue, "simulated": SimulatedQueue}
# What the controller's own job takes from its queue where `queue.controller` does not say it.
SHARED_WORDS = ("slurm_account", "slurm_partition", "slurm_qos", "slurm_setup")
CONTROLLER_WORDS: dict[str, Any] = {"timeout_min": 1440, "cpus_per_task": 1, "mem_gb": 2, "slurm_signal_delay_s": 120}
