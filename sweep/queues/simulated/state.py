"""The state of simulated attempts and workers, and what follows from it and the time alone.

Invariant: nothing here reads a clock, schedules an event or calls an observer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweep.model.facts import Job
from sweep.model.states import JobState
from trainer.contract import Outcome, Report, StopCause, TrialSpec

# Rounding errors of a progress that is a sum of fractions of milestones.
_ROUNDING = 1e-9
# What is left, at least, of a milestone whose report has not been made.
_UNREPORTED = 1e-6


@dataclass(slots=True, eq=False)
class SimulatedAttempt:
    """An attempt in the world.

    Args:
        row: its row of the table.
        progress: milestones trained, with the fraction of the one that is being trained.
        slowness: factor by which it takes longer.
        dies: the progress at which its worker is lost or preempted; infinity: never.
        preempted: whether its worker is then preempted, and not lost.
        lap: when the current milestone was begun, on the world's clock.
        pace: seconds that a whole milestone takes now.
        turn: counts the begun milestones, so that an event of an earlier one is ignored.
        seconds: seconds trained.
    """

    spec: TrialSpec
    row: int
    progress: float
    slowness: float = 1.0
    dies: float = math.inf
    preempted: bool = False
    reports: Sequence[Report] = field(default_factory=list)
    stop: StopCause | None = None
    stop_reason: str = ""
    outcome: Outcome | None = None
    running: bool = False
    lap: float = 0.0
    pace: float = 0.0
    turn: int = 0
    seconds: float = 0.0

    @property
    def milestone(self) -> int:
        """The last milestone that it has trained whole, from 1; 0 before the first."""
        return math.floor(self.progress + _ROUNDING)

    def begin_milestone(self, now: float, pace: float) -> None:
        """Train the next milestone from now on, in `pace` seconds if it is begun at its start."""
        self.lap, self.pace = now, pace
        self.turn += 1

    def end_milestone(self, now: float) -> None:
        """Count the milestone that is being trained as trained."""
        self.progress = self.milestone + 1
        self.seconds += now - self.lap

    def is_training(self, turn: int) -> bool:
        """Whether it still trains the milestone that was begun at this turn."""
        return self.running and self.turn == turn

    def saves(self, milestone: int) -> bool:
        """Whether it writes a checkpoint after this milestone."""
        every = self.spec.checkpoint_every
        return every > 0 and milestone % every == 0

    def reached(self, now: float, milestones: int) -> float:
        """Its progress at this moment; it stays below the next milestone until that is reported.

        Args:
            milestones: of a whole trial.
        """
        if not self.running or not self.pace or self.progress >= milestones:
            return self.progress
        limit = self.milestone + 1 - _UNREPORTED
        return min(limit, self.progress + (now - self.lap) / self.pace)


@dataclass(slots=True, eq=False)
class SimulatedWorker:
    """A worker in the world.

    Args:
        speed: factor by which it trains faster than the model's `trial_seconds`.
        held: the attempts that it trains.
        inbox: the attempts that wait for a slot.
    """

    name: str
    place: int
    speed: float
    job: Job
    ready: bool = False
    draining: bool = False
    assigned: int = 0
    held: list[SimulatedAttempt] = field(default_factory=list)
    inbox: list[SimulatedAttempt] = field(default_factory=list)

    @property
    def gone(self) -> bool:
        """Whether its job has ended."""
        return self.job.state is JobState.GONE

    @property
    def idle(self) -> bool:
        """Whether it has no attempt, neither in a slot nor in its inbox."""
        return not self.held and not self.inbox

    def release(self, attempt: SimulatedAttempt, now: float, milestones: int) -> None:
        """Take an attempt out of its slot, and count the seconds that it has trained.

        Args:
            milestones: of a whole trial.
        """
        if attempt.running and attempt.progress < milestones:
            attempt.seconds += now - attempt.lap
        attempt.running = False
        if attempt in self.held:
            self.held.remove(attempt)

    def take_all(self) -> list[SimulatedAttempt]:
        """All its attempts, those in slots first; its inbox is empty afterwards."""
        attempts, self.inbox = [*self.held, *self.inbox], []
        return attempts
