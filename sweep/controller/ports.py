"""The protocols through which the controller reaches the world.

Invariants: each protocol has few methods, none of which could be built from the others. Every implementation passes
its protocol's contract suite in `tests/contracts/`. Every method that acts is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sweep.model import Effect, Job, StudyFacts, Tell, Verdict, View
from trainer.contract import Outcome, Report, StopCause, TrialSpec

if TYPE_CHECKING:
    from sweep.search.strategy.halving import Promotion


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker to be started.

    Args:
        name: its directory's name in the room.
        place: its position among the queue's workers, from 0.
    """

    name: str
    place: int


@dataclass(frozen=True, slots=True)
class ObservedAttempt:
    """An attempt as the channel shows it.

    Args:
        delivered: it is in its worker's inbox.
        begun: its worker has started it.
        stop, stop_reason: the stop that it was asked for, if any.
        reports: those that the channel has not shown before, in order.
    """

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
    """A worker as the channel shows it.

    Args:
        beat: its last heartbeat, None before the first. It is only compared for equality with an earlier one.
        assigned: attempts ever put into its inbox.
        draining: it was asked to end after the attempts that it has.
        slots: how many attempts it runs at a time, if it has chosen that itself.
    """

    name: str
    beat: str | None
    assigned: int
    draining: bool
    slots: int | None = None


class Dispatcher(Protocol):
    """Starts and ends workers on a queue."""

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        """Start these workers; a worker of this name that exists already is adopted.

        If a queue's jobs carry their first trials, a worker without a trial is only planned. A second call, after
        trials were assigned to it, submits its job.

        Raises:
            GiveUp: the queue refuses the workers.
            RetryLater: the queue does not answer now.
        """

    def poll(self) -> Mapping[str, Job]:
        """The job of every worker ever started in this room, by the worker's name; makes at most one query.

        Raises:
            RetryLater: the queue does not answer now.
        """

    def cancel(self, workers: Sequence[str]) -> None:
        """Cancel these workers' jobs; jobs that are gone are ignored."""

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        """What would be submitted for these workers, as text for the user."""


class Clock(Protocol):
    """Time for the controller: real, or simulated."""

    def now(self) -> float:
        """Seconds since some fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Return after this many seconds."""


class Channel(Protocol):
    """Carries specifications and stops to workers, and reports and outcomes back.

    Every method may raise `RetryLater` if the other side is unreachable now.
    """

    def assign(self, spec: TrialSpec) -> None:
        """Hand an attempt to the worker that its specification names.

        If the specification exists already, the existing one stands. Earlier attempts of the trial that have no
        outcome are fenced off: whatever they write from now on is ignored.
        """

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        """Ask an attempt to stop; if it was asked before, the first cause stands."""

    def drain(self, worker: str) -> None:
        """Ask a worker to end after the attempts that it has."""

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[Mapping[int, list[ObservedAttempt]], Mapping[str, ObservedWorker]]:
        """All attempts of these trials, by trial and in order, and these workers by name.

        An outcome is never shown before the reports that precede it.

        Raises:
            RetryLater, OSError: nothing can be observed now. Reports read in a failed call are shown by the next one.
        """

    def wait(self, clock: Clock, seconds: float) -> None:
        """Wait this long, or until an attempt of the last observation ends or one of its workers becomes ready."""


class Listener(Protocol):
    """Is told what the controller observes and does, for example to print it; must not act on the sweep."""

    def reported(self, trial: int, report: Report) -> None:
        """A trial reached a milestone."""

    def done(self, effect: Effect) -> None:
        """An effect was carried out."""

    def waited(self, view: View) -> None:
        """A round had nothing to do."""

    def promoted(self, promotion: Promotion) -> None:
        """A paused trial was promoted."""

    def trouble(self, message: str) -> None:
        """A round failed; the next one tries again."""


class Ledger(Protocol):
    """Records decisions about trials, and the numbers that each was based on."""

    def add_verdict(self, trial: int, verdict: Verdict, tokens: int) -> None:
        """Record a verdict on a trial that has trained this many label tokens; one recorded before is ignored."""

    def add_promotion(self, promotion: Promotion) -> None:
        """Record that a paused trial was promoted."""


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
    """Everything outside of the controller that it observes or acts on."""

    study: Study
    channel: Channel
    dispatcher: Dispatcher
    clock: Clock
