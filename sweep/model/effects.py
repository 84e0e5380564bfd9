"""What a controller decides to do: `decide` returns effects, and the controller carries each out by one call of a port.

Invariant: frozen values, without behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweep.model.states import Ending, Finished
from trainer.contract import StopCause


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Start a new worker at each of these places."""

    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the study what a free slot should train: a paused trial that it promotes, or a new trial.

    Args:
        new_allowed: whether the budget allows a new trial.
        worker: whose slot it is; empty if no worker has been started for it yet.
    """

    new_allowed: bool = True
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
        unbuildable: it failed before it trained, by its configuration or a file that it lacks.
    """

    trial: int
    ending: Ending
    reason: str
    cancelled: bool = False
    unbuildable: bool = False


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
