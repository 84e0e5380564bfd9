"""The frozen values of a sweep: facts, limits and effects for the controller, rows and states for a person.

The controller gathers facts into a `View`, `decide` turns a `View` and `Limits` into effects, and the controller
carries these out. A reader turns a room and its study into a `SweepState`.

Invariants: values only, without behaviour beyond derived properties. All times are seconds on the controller's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trainer.contract import Outcome, Report, StopCause

# --- words for states -------------------------------------------------------------------------------------------------


class JobState(StrEnum):
    """The state of a worker's job on its queue."""

    PLANNED = "planned"  # not submitted yet: it is submitted together with its first trials
    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"


class Ending(StrEnum):
    """How the study is told that a trial ended; the values are Optuna's names."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Mode(StrEnum):
    """What the user wants of a running controller."""

    RUN = "run"
    HANDOVER = "handover"  # exit at once and change nothing: another controller continues
    DETACH = "detach"  # start nothing more, let running trials finish without a controller
    STOP = "stop"  # stop running trials at a checkpoint, to be resumed later
    CANCEL = "cancel"  # stop running trials for good


class Finished(StrEnum):
    """How a controller's run ended."""

    DONE = "done"
    DETACHED = "detached"
    HANDED_OVER = "handed over"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Ruling(StrEnum):
    """What a verdict does with a trial."""

    STOP = "stop"  # for good: the trial ends as PRUNED
    PAUSE = "pause"  # until the study promotes the trial, which then resumes from its checkpoint


class TrialStatus(StrEnum):
    """The state of a trial as a person sees it."""

    RUNNING = "running"
    WAITING = "waiting"  # for a worker
    PAUSED = "paused"
    ENDED = "ended"  # its attempt has ended, but no controller runs that could tell the study
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the study knows how the trial ended."""
        return self in (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED, TrialStatus.CANCELLED)


class EvaluationStatus(StrEnum):
    """The state of a trial's evaluation as a person sees it."""

    NONE = ""
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the evaluation has ended."""
        return self in (EvaluationStatus.COMPLETE, EvaluationStatus.FAILED)


# --- facts ------------------------------------------------------------------------------------------------------------


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
class AttemptId:
    """Which execution of a trial is meant, and the worker that it was given to.

    Args:
        attempt: number of the execution, from 1.
    """

    trial: int
    attempt: int
    worker: str


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
        complete, pruned, failed, cancelled: how many trials ended in each way.
        best: the lowest objective of a complete trial; `best_trial` is its number.
        tokens: label tokens of the ended trials.
        exhausted: the sampler has nothing left to propose.
        stuck: when last asked to promote, it had no paused trial worth resuming, and nothing has changed since.
        seconds: training time of the ended trials as their workers measured it, finals included.
        gain: the expected decrease of the objective for each further second of training; None if too little is known.
        finals: how many finals are still to be asked for after everything else has ended.
        searching: whether an open trial is not a final.
    """

    open: tuple[int, ...] = ()
    suspended: tuple[int, ...] = ()
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    cancelled: int = 0
    best: float | None = None
    best_trial: int | None = None
    tokens: int = 0
    exhausted: bool = False
    stuck: bool = False
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows. None means no limit.

    Args:
        trials: how many trials may be asked for.
        tokens: label tokens over all trials.
        seconds: since the sweep was created.
        target: an objective that ends the search when a trial reaches it.
        gpu_hours: hours of training. The trials that share a GPU share its hours.
        min_gain: the expected decrease of the objective for each GPU-hour below which nothing more is started.
        workers: how many workers run at a time.
        slots: how many trials a worker runs at a time, unless it chooses that itself.
        trials_per_worker: after this many trials a worker ends and a new one is started.
        max_attempts: lost or failed attempts after which a trial fails; one that found no space left is not counted.
        max_failure_share: the share of failed trials above which the sweep ends with an error, once
            `min_ended_for_share` trials have ended.
        max_start_failures: workers in a row that end before they are ready, after which the sweep ends with an error.
        stop_grace: seconds that an attempt has to obey a stop before its worker is cancelled.
        silence: seconds without a heartbeat after which a worker is cancelled.
        start_grace: seconds that a running job has until its worker is ready.
    """

    trials: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    target: float | None = None
    gpu_hours: float | None = None
    min_gain: float | None = None
    workers: int = 1
    slots: int = 1
    trials_per_worker: int | None = None
    max_attempts: int = 3
    max_failure_share: float = 0.5
    min_ended_for_share: int = 4
    max_start_failures: int = 3
    stop_grace: float = 60.0
    silence: float = 120.0
    start_grace: float = 600.0


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Start a new worker at each of these places."""

    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the study what a free slot should train: a paused trial that it promotes, or a new trial.

    Args:
        new: whether the budget allows a new trial.
        worker: whose slot it is; empty if no worker has been started for it yet.
    """

    new: bool = True
    worker: str = ""


@dataclass(frozen=True, slots=True)
class AskFinal:
    """Ask the study for the next final: one of the best trials, to be trained again with another seed."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Write the attempt's specification unless it exists, then put it into the worker's inbox."""

    trial: int
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a running attempt to stop."""

    trial: int
    attempt: int
    cause: StopCause
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Submit the job of a planned worker together with the trials that were assigned to it."""

    worker: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Have the queue cancel a worker's job."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the study how a trial ended.

    Args:
        reason: one sentence for a person.
        cancelled: the trial was cancelled, by the user or as the search ended; it is told as FAIL and marked.
    """

    trial: int
    ending: Ending
    reason: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask a worker to end after the attempts that it has."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the controller's run."""

    how: Finished
    reason: str


Effect = StartWorkers | Ask | AskFinal | Assign | Send | Stop | Cancel | Tell | Drain | Finish

# --- what a person sees -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as a person sees it.

    Args:
        params: hyperparameters by torchtune key.
        value: the objective of a complete trial, else the last one that it reported; None before the first report.
        reason: why it ended as it did, one sentence.
        attempts: how many attempts it has had.
        worker: of its last attempt.
        reports: one for each milestone, ascending, over all attempts.
        adapter: the path of its adapter; None if it has none.
        final: the number of the trial that this final repeats, and the index of its seed; None if it is no final.
        evaluation_reason: why its evaluation failed.
        scores: of its evaluation, by name.
    """

    number: int
    state: TrialStatus
    params: Mapping[str, Any]
    value: float | None = None
    reason: str = ""
    attempts: int = 0
    worker: str = ""
    reports: tuple[Report, ...] = ()
    adapter: str | None = None
    final: tuple[int, int] | None = None
    evaluation: EvaluationStatus = EvaluationStatus.NONE
    evaluation_reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def last(self) -> Report | None:
        """Its last report."""
        return self.reports[-1] if self.reports else None

    @property
    def tokens(self) -> int:
        """Label tokens that it has trained by its last report."""
        return self.reports[-1].tokens if self.reports else 0


@dataclass(frozen=True, slots=True)
class SweepState:
    """A whole sweep as a person sees it.

    Args:
        metric: the name of the objective, which is minimised.
        workers: those whose jobs are not gone.
        seconds: since the sweep was created; if no controller runs, until its study last changed.
        trial_tokens: label tokens of a trial that runs to its end, measured before the sweep began; 0 if unknown.
        controller: whether a controller is running the sweep now.
        waits: what that controller waits for, if not for its workers.
    """

    name: str
    metric: str
    rows: tuple[TrialRow, ...]
    workers: tuple[WorkerFacts, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seconds: float = 0.0
    trial_tokens: int = 0
    controller: bool = False
    waits: str = ""

    @property
    def best(self) -> TrialRow | None:
        """The complete trial with the lowest objective, finals left out; None if no trial is complete.

        If finals have been trained, it is the finalist whose finals have the lowest mean objective.
        """
        done = [row for row in self.rows if row.state is TrialStatus.COMPLETE and row.value is not None]
        done = [row for row in done if row.final is None]
        means = {number: sum(values.values()) / len(values) for number, values in self.finals.items()}
        done = [row for row in done if row.number in means] or done
        return min(done, key=lambda row: means.get(row.number, row.value or 0.0), default=None)

    @property
    def finals(self) -> dict[int, dict[int, float]]:
        """By finalist the objectives of its complete finals by seed; only finalists that have the most of them."""
        values: dict[int, dict[int, float]] = {}
        for row in self.rows:
            if row.final is not None and row.state is TrialStatus.COMPLETE and row.value is not None:
                values.setdefault(row.final[0], {})[row.final[1]] = row.value
        most = max(map(len, values.values()), default=0)
        return {number: by_seed for number, by_seed in values.items() if len(by_seed) == most}

    @property
    def tokens(self) -> int:
        """Label tokens that all trials have trained by their last reports."""
        return sum(row.tokens for row in self.rows)

    def count(self, state: TrialStatus) -> int:
        """How many trials are in this state."""
        return sum(1 for row in self.rows if row.state is state)
