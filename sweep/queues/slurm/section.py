"""The section `queue` for a SLURM cluster.

Invariants: the fields of `Submitit` are the words of submitit's `AutoExecutor`, with submitit's meaning. The words that
only the program may set (the job's name, its log, one task on one node) are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sweep.config.executables import check_executable
from sweep.config.queues import Queue
from sweep.config.ranges import AT_LEAST_ONE, NOT_NEGATIVE, PAUSE, POSITIVE, Range
from sweep.errors import ConfigError
from trainer.names import has_control

# The words that the controller's own job takes from the queue if `queue.controller` does not set them.
SHARED_WORDS = ("slurm_account", "slurm_partition", "slurm_qos", "slurm_setup")
CONTROLLER_WORDS: dict[str, Any] = {"timeout_min": 1440, "cpus_per_task": 1, "mem_gb": 2, "slurm_signal_delay_s": 120}


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

    RANGES: ClassVar[Mapping[str, Range]] = {
        "timeout_min": AT_LEAST_ONE,
        "cpus_per_task": AT_LEAST_ONE,
        "gpus_per_node": NOT_NEGATIVE,
        "mem_gb": POSITIVE,
        "slurm_array_parallelism": AT_LEAST_ONE,
        "slurm_signal_delay_s": AT_LEAST_ONE,
    }

    def check_texts(self, where: str) -> None:
        """Refuse a text that would become a line of the batch script of its own.

        Args:
            where: the section's name in the error.

        Raises:
            ConfigError: a value or a key has a control character. Lines of the script may have tabs.
        """
        for key, value in dataclasses.asdict(self).items():
            lines = key in ("slurm_setup", "slurm_teardown")
            for text in _texts(value):
                if has_control(text.replace("\t", "") if lines else text):
                    more = "; give each line as an element of the list" if lines else ""
                    raise ConfigError(
                        f"{where}.{key}={text!r} is not allowed; it must have no line break and no other control "
                        f"character{more}"
                    )

    @property
    def requests_gpus(self) -> bool:
        """Whether a job asks SLURM for a GPU, in any of the words that do."""
        words = [self.gpus_per_node, self.slurm_gpus_per_task, self.slurm_gres]
        options = {str(key).lstrip("-").replace("_", "-") for key in self.slurm_additional_parameters}
        return any(words) or bool(options & {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"})


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

    RANGES: ClassVar[Mapping[str, Range]] = {**Queue.RANGES, **Submitit.RANGES, "query_seconds": PAUSE}
    PROGRAMS: ClassVar[tuple[str, ...]] = (
        *Queue.PROGRAMS,
        "controller",
        "python",
        "slurm_additional_parameters",
        "slurm_setup",
        "slurm_srun_args",
        "slurm_teardown",
    )
    UNPICKLES: ClassVar[bool] = True  # submitit's

    @property
    def on_this_machine(self) -> bool:
        return False

    @property
    def own_interpreter(self) -> bool:
        return self.python is not None

    @property
    def job(self) -> Submitit:
        """What the job of a worker requests."""
        return Submitit(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Submitit)})

    @property
    def controller_job(self) -> Submitit:
        """What the controller's own job requests.

        Raises:
            ConfigError: `queue.controller` has an unknown key or a wrong value.
        """
        from sweep.config.section_reader import read_section

        shared = {key: getattr(self, key) for key in SHARED_WORDS}
        return read_section(Submitit, {**shared, **CONTROLLER_WORDS, **self.controller}, "queue.controller")

    def check_section(self) -> None:
        self.job.check_texts("queue")
        self.controller_job.check_texts("queue.controller")
        if self.python is not None and has_control(self.python):
            raise ConfigError(
                f"queue.python={self.python!r} is not allowed; it must have no line break and no other control "
                "character"
            )

    def check_for(self, device: str) -> None:
        """Refuse a queue that cannot run a recipe of this device.

        Raises:
            ConfigError: with the key, its value and what is allowed.
        """
        if self.python is not None:
            check_executable("queue.python", self.python)
        if self.workers is None:
            raise ConfigError("queue.workers=null: say how many SLURM jobs may run at once, e.g. queue.workers=4")
        if device.startswith("cuda") and not self.requests_gpus:
            raise ConfigError(
                f"device={device}, but the queue asks SLURM for no GPU; set queue.gpus_per_node=1 (or "
                "slurm_gpus_per_task, slurm_gres), or recipe.overrides.device=cpu"
            )
        for words, where in ((self.job, "queue"), (self.controller_job, "queue.controller")):
            if words.slurm_signal_delay_s >= words.timeout_min * 60:
                raise ConfigError(
                    f"{where}.slurm_signal_delay_s={words.slurm_signal_delay_s} is as long as the job; it must be "
                    f"below {where}.timeout_min={words.timeout_min} minutes, and long enough to write a checkpoint"
                )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value: itself, the keys and values of a mapping, and the elements of a list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
