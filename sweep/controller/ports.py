"""The protocols between the controller and the world.

Invariants: each protocol has few methods, and none that can be built from the others. Every implementation passes the
contract suite of its protocol in `tests/contracts/`. Every method that acts is safe to repeat. A study need not pause
trials or train finals: it then does not implement `PausingStudy` or `FinalsStudy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sweep.model import Job, StudyFacts, Tell, Verdict
from trainer.contract import Outcome, Report, StopCause, TrialSpec

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion


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
    """Proposes trials, judges their reports and records how they ended."""

    def ask(self) -> int:
        """Create a new trial and return its number."""

    def params(self, number: int) -> Mapping[str, Any]:
        """The hyperparameters of an open trial by torchtune key."""

    def record(
        self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True
    ) -> Verdict | None:
        """Add the new reports of a trial, in order, and return the verdict that holds after them.

        Reports after a stop are ignored. Reports after a pause are held back until the trial is promoted.

        Args:
            worker: the worker that made them, if it trains further trials; else empty.
            new_allowed: the budget allows a new trial in place of this one.
        """

    def tell(self, result: Tell, tokens: int, seconds: float = 0.0) -> None:
        """Record how a trial ended. Does nothing if its end is recorded already.

        Args:
            tokens: label tokens that it trained.
            seconds: seconds that it trained.
        """

    def facts(self) -> StudyFacts:
        """Counts, open trials and the best value."""


@runtime_checkable
class PausingStudy(Protocol):
    """A study whose verdicts may pause trials, and which promotes paused trials."""

    def restore_pause(self, number: int, reason: str) -> None:
        """Restore a pause that an earlier controller decided on, unless a promotion has ended it since."""

    def suspend(self, number: int) -> None:
        """Note that the attempt of a paused trial has ended. The trial is not open again until it is promoted."""

    def promote(self, new_allowed: bool, worker: str = "") -> Promotion | None:
        """End the pause of the trial that should get a free slot. None: a new trial should get it.

        Args:
            new_allowed: the budget allows a new trial. If not, None means that no paused trial is worth continuing.
            worker: the worker with the free slot, if it is known.
        """

    def trials_without_reports(self) -> Sequence[int]:
        """Ended trials whose reports this study needs to judge others, and does not have."""

    def restore_reports(self, number: int, reports: Sequence[Report]) -> None:
        """Add what an ended trial reported to an earlier controller."""


@runtime_checkable
class FinalsStudy(Protocol):
    """A study that trains its best trials again with further seeds."""

    def ask_final(self) -> int:
        """Create the next final and return its number. A final is never judged."""


class SearchStudy(Study, PausingStudy, FinalsStudy, Protocol):
    """A study with everything that a search may need."""


@dataclass
class Ports:
    """The world as the controller reaches it."""

    study: Study
    channel: Channel
    dispatcher: Dispatcher
    clock: Clock

    @cached_property
    def pausing(self) -> PausingStudy | None:
        """The study, if it can pause trials."""
        return self.study if isinstance(self.study, PausingStudy) else None

    @cached_property
    def finals(self) -> FinalsStudy | None:
        """The study, if it can train finals."""
        return self.study if isinstance(self.study, FinalsStudy) else None
