"""The four protocols between the controller and the world.

Invariants: few methods each, none that another could be made of; every implementation passes the contract suite
of its protocol in `tests/contracts/`; every method that acts is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sweep.model import Job, StudyFacts, Tell, Verdict
from trainer.contract import Outcome, Report, StopCause, TrialSpec

if TYPE_CHECKING:
    from sweep.search.strategy.halving import Promotion


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker to be started: its name in the room and its place among the queue's workers."""

    name: str
    place: int


@dataclass(frozen=True, slots=True)
class ObservedAttempt:
    """An attempt as the channel shows it; `reports` are those not shown before."""

    number: int
    worker: str
    delivered: bool
    begun: bool
    stop: StopCause | None
    stop_reason: str
    outcome: Outcome | None
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class ObservedWorker:
    """A worker as the channel shows it; a beat is only ever compared with an earlier one, `slots` is its own choice."""

    name: str
    beat: str | None
    assigned: int
    draining: bool
    slots: int | None = None


class Dispatcher(Protocol):
    """Starts and ends workers on a queue."""

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        """Start these workers, or adopt those found under their names.

        Where a job carries its first trials, a worker that has none is only planned; a second call, once it has been
        given some, hands it to the queue.

        Raises:
            GiveUp: the queue refuses; RetryLater: it cannot answer now.
        """

    def poll(self) -> Mapping[str, Job]:
        """The job of every worker ever started in this room, with at most one query of the queue."""

    def cancel(self, workers: Sequence[str]) -> None:
        """End these workers' jobs; nothing where they are gone."""

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        """What would be handed to the queue for these workers, for a person."""


class Clock(Protocol):
    """Time for the controller: real, or simulated."""

    def now(self) -> float:
        """Seconds; only differences mean anything."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class Channel(Protocol):
    """Carries specifications and stops to workers, reports and outcomes back."""

    def assign(self, spec: TrialSpec) -> None:
        """Hand an attempt to the worker that it names."""

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        """Ask an attempt to stop; the first cause stands."""

    def drain(self, worker: str) -> None:
        """Tell a worker to end after what it has."""

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        """All attempts of these trials, and these workers."""

    def wait(self, clock: Clock, seconds: float) -> None:
        """Let this time pass, or less where an attempt of the last observation ends or a worker gets ready."""


class Study(Protocol):
    """Proposes trials, judges their reports, and remembers how they ended."""

    def ask(self) -> int:
        """The number of a new trial."""

    def params(self, number: int) -> Mapping[str, Any]:
        """A trial's hyperparameters by torchtune key."""

    def record(self, number: int, reports: Sequence[Report], worker: str = "", new: bool = True) -> Verdict | None:
        """Take a trial's new reports in, in order; the verdict that stands.

        Reports after a stop are ignored; those after a pause are held back until the trial is promoted.

        Args:
            worker: that made them, where it goes on to other trials; else empty.
            new: a new trial may be asked for in its place.
        """

    def reinstate(self, number: int, reason: str) -> None:
        """A pause that an earlier controller decided on stands, unless a promotion has ended it."""

    def lay_aside(self, number: int) -> None:
        """A paused trial has stopped: it is open no more, until it is promoted."""

    def promote(self, new: bool, worker: str = "") -> Promotion | None:
        """The paused trial that deserves a free slot most: its pause is over. None: a new trial deserves it more.

        Args:
            new: a new trial may be asked for; where not, None means that no paused one is worth going on with.
            worker: whose slot it is, where known.
        """

    def unknown(self) -> Sequence[int]:
        """Ended trials whose reports it needs to judge others, and has not seen."""

    def recall(self, number: int, reports: Sequence[Report]) -> None:
        """Take in what a trial reported in an earlier controller's time."""

    def ask_final(self) -> int:
        """The number of the next final: one of the best trials again, with another seed; it is never judged."""

    def tell(self, told: Tell, tokens: int, seconds: float = 0.0) -> None:
        """Say how a trial ended, how many label tokens and how long it trained; nothing where it was told before."""

    def facts(self) -> StudyFacts:
        """Counts, open trials and the best value."""


@dataclass
class Ports:
    """The world as the controller reaches it."""

    study: Study
    channel: Channel
    dispatcher: Dispatcher
    clock: Clock
