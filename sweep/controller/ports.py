"""The protocols through which the controller reaches the world.

Invariants: each protocol has few methods, none of which could be built from the others. Every implementation passes
its protocol's contract suite in `tests/contracts/`. Every method that acts is safe to repeat. A study that does not
pause trials or train finals does not implement `PausingStudy` or `FinalsStudy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sweep.model.effects import Effect, Tell
from sweep.model.facts import Job, StudyFacts, Verdict, View
from trainer.contract import Outcome, Report, StopCause, TrialSpec

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion


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

    def forget(self, trial: int) -> None:
        """Drop what is kept of a trial that has ended and is not observed again.

        A trial that is observed all the same is shown as to a new controller, with all its reports.
        """

    def wait(self, clock: Clock, seconds: float) -> None:
        """Wait this long, or until an attempt of the last observation ends or one of its workers becomes ready."""


class Disk(Protocol):
    """Tells whether there is space for what the sweep writes."""

    def no_space(self) -> str:
        """Where no space is left now, as text for a person; empty: there is some. May be asked in each round."""

    def failed(self, reason: str) -> None:
        """Learn that a worker found no space left, perhaps on a disk of its own: nothing starts for a while."""


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

    def round_failed(self, message: str) -> None:
        """A round failed; the next one tries again."""


class Ledger(Protocol):
    """Records decisions about trials, and the numbers that each was based on."""

    def add_verdict(self, trial: int, verdict: Verdict, tokens: int) -> None:
        """Record a verdict on a trial that has trained this many label tokens; one recorded before is ignored."""

    def add_promotion(self, promotion: Promotion) -> None:
        """Record that a paused trial was promoted."""


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

    def objective(self, number: int) -> float | None:
        """The objective, as it was measured, in the final report of an open trial: NaN if the report has no finite
        one, None if the report was not recorded yet. A trial is told COMPLETE with this value."""

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

    def suspend(self, number: int, trained: bool = False) -> None:
        """Note that the attempt of a paused trial has ended. The trial is not open again until it is promoted.

        Args:
            trained: the attempt had trained to the trial's end before the pause reached it.
        """

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
    """Everything outside of the controller that it observes or acts on.

    Args:
        disk: None: nothing is written to one.
    """

    study: Study
    channel: Channel
    dispatcher: Dispatcher
    clock: Clock
    disk: Disk | None = None

    @cached_property
    def pausing(self) -> PausingStudy | None:
        """The study, if it can pause trials."""
        return self.study if isinstance(self.study, PausingStudy) else None

    @cached_property
    def finals(self) -> FinalsStudy | None:
        """The study, if it can train finals."""
        return self.study if isinstance(self.study, FinalsStudy) else None
