"""The part of the section `queue` that every kind of queue shares, and the look-up of a kind.

Invariants: a section is valid in itself once `read_queue` has returned it. What the configuration, the tracking and the
evaluation must know of a queue is a property or method of its section, with the default of a queue on this machine; no
other code asks which kind a queue is. This folder never imports `sweep.queues`: `queue_package` loads a kind by its
name, when a section of that kind is read.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from sweep.config.ranges import AT_LEAST_ONE, PAUSE, POSITIVE, Range, between
from sweep.errors import ConfigError

# The package whose folders are the kinds of queue, and the group of entry points under which others install theirs.
QUEUES = "sweep.queues"
# Environment variables that keep the libraries of Hugging Face and W&B from using the network.
# More than any queue runs at once: a larger number is a typing error that the controller would work on for hours.
MAX_WORKERS = 100_000
MAX_SLOTS = 1024
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}


@dataclass
class Queue:
    """Where the workers of a sweep run.

    Args:
        kind: the kind of queue: local, slurm, launch, simulated, or one that another package installs.
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

    RANGES: ClassVar[Mapping[str, Range]] = {
        "workers": between(1, MAX_WORKERS),
        "slots": (
            lambda value: value == "auto" or (isinstance(value, int) and 1 <= value <= MAX_SLOTS),
            f"between 1 and {MAX_SLOTS}, or auto",
        ),
        "trials_per_worker": AT_LEAST_ONE,
        "threads": AT_LEAST_ONE,
        "idle_seconds": POSITIVE,
        "silence_seconds": POSITIVE,
        "start_seconds": POSITIVE,
        "stop_grace_seconds": POSITIVE,
        "poll_seconds": PAUSE,
    }
    # Keys that name programs, lines of scripts, or what starts and surrounds programs (docs/security.md).
    PROGRAMS: ClassVar[tuple[str, ...]] = ("env",)
    # Whether jobs unpickle files of the room.
    UNPICKLES: ClassVar[bool] = False

    # --- what a worker is started with --------------------------------------------------------------------------

    @property
    def worker_slots(self) -> int:
        """The number of slots that a worker is started with; 0 if it chooses the number itself."""
        return 0 if self.slots == "auto" else int(self.slots)

    @property
    def worker_env(self) -> dict[str, str]:
        """Environment variables of each worker, and of the process that checks whether a worker could train."""
        return {**(OFFLINE_ENV if self.offline else {}), **self.env}

    # --- facts that a kind of queue may change ------------------------------------------------------------------

    @property
    def on_this_machine(self) -> bool:
        """Whether the workers share this machine's processors and GPUs with the controller."""
        return True

    @property
    def simulated(self) -> bool:
        """Whether nothing is trained and the clock is not the wall clock."""
        return False

    @property
    def own_interpreter(self) -> bool:
        """Whether jobs run under another Python than this one, so that packages cannot be checked here."""
        return False

    @property
    def jobs_are_runs(self) -> bool:
        """Whether every job is a W&B run, also if the recipe logs nothing to W&B."""
        return False

    @property
    def wandb_project(self) -> str | None:
        """The W&B project that the jobs' runs are in; None: that of the section `wandb`."""
        return None

    @property
    def max_run_id(self) -> int | None:
        """The longest id of a run, which then has letters, digits and dashes only; None: W&B's own limits."""
        return None

    @property
    def reports_over_wandb(self) -> bool:
        """Whether reports and stops travel through W&B, since jobs and controller share no file system."""
        return False

    def store_url(self, sweep: str) -> str | None:
        """The URL of the object store that carries the room of a sweep; None if jobs and controller share the room."""
        return None

    def room_in_jobs(self, root: Path) -> str:
        """The path or URL at which jobs see the room whose directory here is `root`."""
        return str(root)

    def for_evaluations(self, sweep: str) -> Self:
        """The section of the queue on which the adapters of a sweep are evaluated: one worker with one slot.

        On this machine the worker has one thread, as the trials use the cores.
        """
        return replace(self, workers=1, slots=1, threads=1 if self.on_this_machine else self.threads)

    def check_section(self) -> None:
        """Refuse values that do not fit each other.

        Raises:
            ConfigError: with the key, its value and what is allowed.
        """


def queue_kinds() -> list[str]:
    """The kinds of queue that are installed: the folders of `sweep.queues`, then entry points of the same name."""
    folders = [info.name for info in pkgutil.iter_modules(importlib.import_module(QUEUES).__path__) if info.ispkg]
    return sorted({*folders, *entry_points(group=QUEUES).names})


def queue_package(kind: Any) -> ModuleType:
    """The package of a kind of queue, which has the queue's implementation as `BACKEND`.

    This is the one place at which configuration depends on a queue: by name, when a section is read.

    Raises:
        ConfigError: no queue of this kind is installed.
    """
    paths = importlib.import_module(QUEUES).__path__
    if isinstance(kind, str) and kind in {info.name for info in pkgutil.iter_modules(paths) if info.ispkg}:
        return importlib.import_module(f"{QUEUES}.{kind}")
    for entry in entry_points(group=QUEUES):
        if entry.name == kind:
            module: ModuleType = entry.load()
            return module
    raise ConfigError(f"queue.kind={kind} is not allowed; it must be {' or '.join(queue_kinds())}")


def section_class(kind: Any) -> type[Queue]:
    """The dataclass of the section `queue` of this kind.

    Raises:
        ConfigError: no queue of this kind is installed.
    """
    section: type[Queue] = queue_package(kind).BACKEND.section
    return section
