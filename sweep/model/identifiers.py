"""What names an execution of a trial."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttemptId:
    """Which execution of a trial is meant, and the worker that it was given to.

    Args:
        attempt: number of the execution, from 1.
    """

    trial: int
    attempt: int
    worker: str
