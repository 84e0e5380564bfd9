"""The facts on which a controller decides, gathered into a `View`.

Invariants: frozen values, without behaviour beyond derived properties. All times are seconds on the controller's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.model.states import JobState, Mode, Ruling
from trainer.contract import Outcome, StopCause

# How the reason of a job begins of which nobody can say whether it runs.
CANNOT_BE_SEEN = "cannot be seen"


@dataclass(frozen=True, slots=True)
class Job:
    """A worker's job as its queue shows it.

    Args:
        place: the worker's position among the queue's workers, from 0.
        handle: the queue's own name of the job, e.g. a SLURM job id; empty if it has none.
        node: the host that it runs on; empty if unknown.
        reason: why it is pending, or how it ended, as text for a person.
    """

    place: int
    state: JobState
    handle: str = ""
    node: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A pruner's decision to stop or pause a trial.

    Args:
        milestone: of the report on which it was decided, from 1; 0 if an earlier controller decided it.
        value: the objective at that milestone.
        reason: one sentence for a person.
        basis: the numbers that the decision was based on, by name, for the ledger.
    """

    milestone: int
    value: float
    reason: str
    ruling: Ruling = Ruling.STOP
    basis: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields of a verdict that stops; `Verdict(**fields)` makes an equal one."""
        assert self.ruling is Ruling.STOP
        return {"milestone": self.milestone, "value": self.value, "reason": self.reason, "basis": dict(self.basis)}


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """One attempt (execution) of a trial.

    Args:
        number: from 1, counted for each trial.
        delivered: it is in its worker's inbox.
        begun: its worker has started it. Only then may the attempt itself have ended the worker.
        stop: why it was asked to stop; None if it was not.
        stop_since: when this controller first saw the stop; None without one.
        outcome: how it ended; None while it may be running, or if it was lost with its worker.
        outcome_since: when this controller first saw the outcome; None: long ago, or there is none.
    """

    number: int
    worker: str
    delivered: bool = True
    begun: bool = True
    stop: StopCause | None = None
    stop_since: float | None = None
    outcome: Outcome | None = None
    outcome_since: float | None = None


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """An open trial: the study has not been told how it ended.

    Args:
        attempts: oldest first.
        verdict: the verdict that stands. A pause stands until the study promotes the trial.
        objective: the number in its final report; None before the study has that; NaN if it is not finite or absent.
    """

    number: int
    attempts: tuple[AttemptFacts, ...] = ()
    verdict: Verdict | None = None
    objective: float | None = None

    @property
    def paused(self) -> bool:
        """Whether its verdict is a pause, even if its attempt has not stopped yet."""
        return self.verdict is not None and self.verdict.ruling is Ruling.PAUSE


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker that was started and is not known to be gone, or that ended lately.

    Args:
        place: its position among the queue's workers, from 0; on this machine its GPU or its share of the cores.
        ready: its first heartbeat was seen, so that it takes trials.
        started: when this controller first saw the job in its present state.
        beat: when this controller last saw a new heartbeat.
        assigned: attempts ever put into its inbox.
        draining: it was asked to end after the attempts that it has.
        slots: how many attempts it runs at a time, if it has chosen that itself; None: as many as the limits say.
        handle, node, reason: see `Job`.
    """

    name: str
    place: int
    job: JobState
    ready: bool = False
    started: float = 0.0
    beat: float = 0.0
    assigned: int = 0
    draining: bool = False
    slots: int | None = None
    handle: str = ""
    node: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What the study knows of the trials of this sweep; imported trials are not counted.

    Args:
        open: numbers of the trials that were asked for and not told, ascending, without the `suspended` ones.
        suspended: numbers of paused trials whose attempts have ended; they are not observed until they are promoted.
        trained: those of the suspended ones that had trained to their end before the pause reached them. They are told
            COMPLETE in the end if the sweep would have no complete trial otherwise.
        complete, pruned, failed, cancelled: how many trials ended in each way.
        unbuildable: how many of the failed ones failed by their configuration, or by a file that they lack.
        failure: why the last of the failed ones failed.
        best: the best objective of a complete trial, minimised (see `model.objectives`); `best_trial` is its number.
        tokens: label tokens of the ended trials.
        exhausted: the sampler has nothing left to propose.
        none_to_promote: when last asked, it had no paused trial worth resuming, and nothing has changed since.
        seconds: training time of the ended trials as their workers measured it, finals included.
        gain: the expected decrease of the objective for each further second of training; None if too little is known.
        finals: how many finals are still to be asked for after everything else has ended.
        searching: whether an open trial is not a final.
    """

    open: tuple[int, ...] = ()
    suspended: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    cancelled: int = 0
    unbuildable: int = 0
    failure: str = ""
    best: float | None = None
    best_trial: int | None = None
    tokens: int = 0
    exhausted: bool = False
    none_to_promote: bool = False
    seconds: float = 0.0
    gain: float | None = None
    finals: int = 0
    searching: bool = False

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return self.complete + self.pruned + self.failed + self.cancelled

    @property
    def asked(self) -> int:
        """How many trials were asked for."""
        return self.ended + len(self.open) + len(self.suspended)


@dataclass(frozen=True, slots=True)
class View:
    """All facts of one moment, on which the controller decides.

    Args:
        trials: the open trials, without the suspended ones.
        mode: what the user wants.
        tokens: label tokens trained by all trials so far.
        seconds: since the sweep was created.
        trained: seconds of training over all trials so far, as their workers measured them.
        start_failures: how many workers in a row ended before they were ready.
        start_failure: how the last of them ended.
        no_space: where no space is left, as text for a person; empty: there is some. Nothing starts without space.
    """

    study: StudyFacts
    trials: tuple[TrialFacts, ...]
    workers: tuple[WorkerFacts, ...]
    mode: Mode = Mode.RUN
    tokens: int = 0
    seconds: float = 0.0
    trained: float = 0.0
    start_failures: int = 0
    start_failure: str = ""
    no_space: str = ""
