"""What the program needs of a queue: the `Backend`, of which every kind of queue has one implementation.

Invariants: a backend has no state of its own, so that one serves all sweeps of a process; everything follows from the
room and the settings. A kind of queue overrides `open` and what is not so on its machines; the defaults are those of a
queue on this machine without a life outside the controller. No module above asks which kind a queue is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sweep.config.queues import Queue

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.controller.ports import Channel, Clock, Dispatcher, SearchStudy
    from sweep.model.facts import Job
    from sweep.model.identifiers import AttemptId
    from sweep.processes import PreforkServer
    from sweep.queues.controller_job import ControllerJob, RunController
    from trainer.contract import TrialSpec
    from trainer.room import Room

# A check of `sweep doctor`: its name, and what it found as a sentence. It raises a SweepError with what is wrong.
NamedCheck = tuple[str, Callable[[], str]]


def unchanged(study: SearchStudy) -> SearchStudy:
    """The study itself."""
    return study


@dataclass(frozen=True)
class OpenQueue:
    """A queue as the controller of one room uses it.

    Args:
        clock: the time on which the queue's workers live; None: that of this machine.
        ended: returns a value that changes whenever a job ends; by default each value differs from all others, as
            nothing is known of that.
        study: wraps the study of the sweep.
    """

    dispatcher: Dispatcher
    channel: Channel
    clock: Clock | None = None
    ended: Callable[[], object] = object
    study: Callable[[SearchStudy], SearchStudy] = unchanged


@dataclass(frozen=True)
class Recording:
    """What a queue that replays recorded trials says of them, so that no data have to be counted.

    Args:
        milestones: reports of a whole trial.
        trial_tokens: label tokens of a whole trial.
    """

    milestones: int
    trial_tokens: int


class SpecBuilder(Protocol):
    """Builds the specification of an attempt from its trial's hyperparameters."""

    def __call__(self, attempt: AttemptId, params: Mapping[str, Any], final_seed: int | None) -> TrialSpec:
        """The specification; `final_seed` is the number of a final's seed, None if the trial is no final."""


class Backend(ABC):
    """The implementation of a kind of queue: `BACKEND` in the package `sweep.queues.<kind>` is an instance.

    `settings.queue` is always an instance of `section`.
    """

    section: ClassVar[type[Queue]]

    @abstractmethod
    def open(self, room: Room, settings: Settings, prefork: PreforkServer | None = None) -> OpenQueue:
        """The queue of a room, for its controller. Nothing is started, and the queue is not asked for anything yet.

        Args:
            prefork: forks workers in milliseconds if the queue can use that; None: each worker starts by itself.
        """

    def viewer(self, room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
        """A function that returns the job of each worker, for a process that only reads. It writes nothing, and it
        returns what is known if the queue does not answer."""
        return self.open(room, settings).dispatcher.poll

    # --- before a sweep -----------------------------------------------------------------------------------------

    def check(self, settings: Settings) -> None:  # noqa: B027 - most queues refuse nothing
        """Refuse settings with which this queue could not run a trial.

        Raises:
            ConfigError: with the key, its value and what is allowed.
        """

    def check_room(self, room: Room) -> None:  # noqa: B027 - most queues take any path
        """Refuse a directory that the queue's jobs could not name.

        Raises:
            ConfigError: with the path and what to do.
        """

    def freeze(self, settings: Settings) -> Settings:
        """The settings of a new sweep, with what the queue's service must decide once for all its life.

        Raises:
            ConfigError: the service refuses. RetryLater: it does not answer.
        """
        return settings

    def on_gpu(self, settings: Settings) -> bool:
        """Whether the recipe trains on CUDA.

        Raises:
            ConfigError: it does, and the queue's machines have no GPU.
        """
        return str(settings.torchtune.get("device")).startswith("cuda")

    def worker_count(self, settings: Settings) -> int:
        """How many workers run at once."""
        return settings.queue.workers or 1

    def prefork(self, settings: Settings) -> PreforkServer:
        """Processes that import torch while the data are counted. None is started before its first use."""
        from sweep.processes import PreforkServer

        return PreforkServer(env=settings.queue.worker_env)

    def doctor(self, settings: Settings, rooms_dir: Path) -> Sequence[NamedCheck]:
        """Checks that this queue can run a sweep; the first that fails explains those after it.

        Args:
            rooms_dir: the directory of the rooms, which the jobs must see.
        """
        return ()

    def controller_job(self, room: Room, settings: Settings, run: RunController) -> ControllerJob | None:
        """The controller as a job of this queue; None: a detached controller is a process of this machine."""
        return None

    # --- queues that train nothing ------------------------------------------------------------------------------

    def recording(self, queue: Queue) -> Recording | None:
        """The recorded trials that this queue replays; None if it trains.

        Raises:
            ConfigError: they cannot be read.
        """
        return None

    def spec_builder(self, settings: Settings) -> SpecBuilder | None:
        """What builds the specifications of attempts; None: they hold torchtune configurations."""
        return None

    def seconds(self, room: Room) -> float | None:
        """The age of a sweep on the queue's own clock, in seconds; None: that is the machine's."""
        return None
