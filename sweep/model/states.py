"""The states of jobs, trials, evaluations and controllers.

Invariant: rooms, studies and ledgers hold some of the values, so no value changes.
"""

from __future__ import annotations

from enum import StrEnum


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
