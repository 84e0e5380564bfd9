"""The frozen values that the controller reasons about: facts, limits and effects.

Invariants: no behaviour beyond derived properties; times are seconds on the controller's own clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trainer.contract import Outcome, Report, StopCause


class JobState(StrEnum):
    """What a queue says of a worker's job. A planned one is given its first trials, and then sent to the queue."""

    PLANNED = "planned"
    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Job:
    """A worker's job as its queue shows it.

    Args:
        place: the worker's position among the queue's workers.
        handle: what the queue calls the job: a SLURM job id; empty where it has no name of its own.
        node: where it runs.
        reason: why it waits, or how it ended, in plain words.
    """

    place: int
    state: JobState
    handle: str = ""
    node: str = ""
    reason: str = ""


class Ending(StrEnum):
    """How a trial is told to the study; Optuna's own words."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Mode(StrEnum):
    """What the person wants of the controller."""

    RUN = "run"
    HANDOVER = "handover"  # leave all as it is: another controller goes on
    DETACH = "detach"  # ask no more, let running trials go on without us
    STOP = "stop"  # stop running trials with a checkpoint, to go on later
    CANCEL = "cancel"  # stop running trials for good


class Finished(StrEnum):
    """Why a controller's run ended."""

    DONE = "done"
    DETACHED = "detached"
    HANDED_OVER = "handed over"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Ruling(StrEnum):
    """What a verdict asks for: an end, or a rest from which the trial may be called back."""

    STOP = "stop"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A pruner's decision to stop or pause a trial, with what it was based on.

    Args:
        basis: the numbers that it was based on, for the ledger.
    """

    milestone: int
    value: float
    reason: str
    ruling: Ruling = Ruling.STOP
    basis: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields of a stop, from which `Verdict(**fields)` makes the same."""
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
    """One attempt, as the room shows it.

    Args:
        delivered: its worker has it in the inbox.
        begun: its worker has taken it; only then can it have been the trial that ended the worker.
        stop_since: when the controller first saw the stop, None without one.
    """

    number: int
    worker: str
    delivered: bool = True
    begun: bool = True
    stop: StopCause | None = None
    stop_since: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """A trial that the study has not been told yet.

    Args:
        verdict: what stands: a stop for good, a pause until the study promotes the trial.
    """

    number: int
    attempts: tuple[AttemptFacts, ...] = ()
    verdict: Verdict | None = None

    @property
    def paused(self) -> bool:
        return self.verdict is not None and self.verdict.ruling is Ruling.PAUSE


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker that has been started and is not known to be gone, or whose attempts are still open.

    Args:
        place: its position among the queue's workers (a GPU or a core).
        ready: its beat was seen.
        started, beat: when the controller first saw it, and when its beat last changed.
        assigned: attempts ever put into its inbox.
        slots: how many it holds at a time, where it has chosen by itself.
        handle, node, reason: see `Job`; for a person.
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
    """What the study knows of this sweep's own trials, imported ones left out.

    Args:
        open: numbers asked and not told, ascending, without those of `aside`.
        aside: paused trials whose attempts have ended, which nobody need look at until they are promoted or told.
        tokens: label tokens of the ended trials.
        exhausted: the sampler has nothing left to propose.
        seconds: that the ended trials trained, as they said, finals included.
        gain: by how much the objective is expected to fall for each second of training more; None: too little is known.
        finals: finals still to be asked for, once all else has ended.
        searching: some open trial is no final.
        stuck: asked for a paused trial worth going on, it had none, and has learnt nothing since.
    """

    open: tuple[int, ...] = ()
    aside: tuple[int, ...] = ()
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
        return self.complete + self.pruned + self.failed + self.cancelled

    @property
    def asked(self) -> int:
        return self.ended + len(self.open) + len(self.aside)


@dataclass(frozen=True, slots=True)
class View:
    """All facts of one moment.

    Args:
        tokens: label tokens trained by all trials so far.
        seconds: since the sweep was created.
        trained: seconds of training over all trials so far, as they said.
        start_failures: workers in a row that ended without ever being ready.
        start_failure: how the last of them ended.
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows. None: no limit.

    Args:
        gpu_hours: of training; a worker's slots share its hours.
        min_gain: expected fall of the objective for each hour of a GPU, below which nothing more is begun.
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


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Start a worker at each of these places."""

    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the study what a free slot shall train: a paused trial that deserves it, or a new one.

    Args:
        new: the budget allows a new one.
        worker: whose slot it is; empty where no worker has started yet.
    """

    new: bool = True
    worker: str = ""


@dataclass(frozen=True, slots=True)
class AskFinal:
    """Ask the study for the next final: one of the best trials, to be trained again with another seed."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Write the attempt's specification where it is missing, then put it into the worker's inbox."""

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
    """Hand a planned worker to its queue, with the trials that it was given."""

    worker: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Have the queue end a worker's job."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the study how a trial ended."""

    trial: int
    ending: Ending
    reason: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker end after what it has."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The controller's run is over."""

    how: Finished
    reason: str


Effect = StartWorkers | Ask | AskFinal | Assign | Send | Stop | Cancel | Tell | Drain | Finish


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as a person sees it, told or not.

    Args:
        state: running, waiting (for a worker), paused, ended (and not told yet: no controller runs), complete, pruned,
            failed or cancelled.
        value: the objective of a complete trial, else its last reported one.
        reports: one per milestone, ascending, over all attempts.
        final: the trial that this one repeats, and with which of the seeds.
        evaluation: waiting, running, complete or failed; empty where there is none.
        evaluation_reason: why it failed.
        scores: what it found, by name.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    value: float | None = None
    reason: str = ""
    attempts: int = 0
    worker: str = ""
    reports: tuple[Report, ...] = ()
    adapter: str | None = None
    final: tuple[int, int] | None = None
    evaluation: str = ""
    evaluation_reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def last(self) -> Report | None:
        return self.reports[-1] if self.reports else None

    @property
    def tokens(self) -> int:
        return self.reports[-1].tokens if self.reports else 0


@dataclass(frozen=True, slots=True)
class SweepState:
    """A whole sweep as a person sees it.

    Args:
        trial_tokens: label tokens of a trial that runs to its end, as probed; 0 where unknown.
        controller: a controller is running it now.
    """

    name: str
    metric: str
    rows: tuple[TrialRow, ...]
    workers: tuple[WorkerFacts, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seconds: float = 0.0
    trial_tokens: int = 0
    controller: bool = False

    @property
    def best(self) -> TrialRow | None:
        """The complete trial of the least value; of finalists, the one of the least mean over their finals."""
        done = [row for row in self.rows if row.state == "complete" and row.value is not None and row.final is None]
        means = {number: sum(values.values()) / len(values) for number, values in self.finals.items()}
        done = [row for row in done if row.number in means] or done
        return min(done, key=lambda row: means.get(row.number, row.value or 0.0), default=None)

    @property
    def finals(self) -> dict[int, dict[int, float]]:
        """By finalist, the values of its finals by seed; those finalists that have most of them."""
        found: dict[int, dict[int, float]] = {}
        for row in self.rows:
            if row.final is not None and row.state == "complete" and row.value is not None:
                found.setdefault(row.final[0], {})[row.final[1]] = row.value
        most = max(map(len, found.values()), default=0)
        return {number: values for number, values in found.items() if len(values) == most}

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    def count(self, state: str) -> int:
        return sum(1 for row in self.rows if row.state == state)
