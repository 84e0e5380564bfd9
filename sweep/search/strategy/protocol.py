"""What a search strategy is given, and what it answers.

Invariants: a strategy is pure: the same curves give the same answer. Values are minimised. Independent of Optuna; does
no input or output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from sweep.model.facts import Verdict
from trainer.contract import Report


class CurveStatus(StrEnum):
    """The status of a trial as a strategy sees it."""

    RUNNING = "running"
    PAUSED = "paused"
    PRUNED = "pruned"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Curve:
    """The learning curve of a trial.

    Args:
        reports: all reports so far, ascending by milestone.
        worker: the worker that made the last of them; empty if it is unknown or irrelevant.
    """

    number: int
    params: Mapping[str, Any]
    reports: Sequence[Report]
    status: CurveStatus
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """The decision to continue a paused trial in a free slot, rather than to start a new one.

    Args:
        basis: the numbers that the decision is based on, for the ledger.
    """

    trial: int
    reason: str
    basis: Mapping[str, float]


class Strategy(Protocol):
    """Pauses, stops and promotes trials; `milestones` is the number of reports of a trial that runs to its end."""

    def verdict(
        self, number: int, curves: Mapping[int, Curve], milestones: int, new_allowed: bool = True
    ) -> Verdict | None:
        """The verdict on the newest report of a running trial; None: the trial continues.

        Args:
            new_allowed: the budget allows a new trial in place of this one.
        """

    def promote(self, curves: Mapping[int, Curve], milestones: int, worker: str = "") -> Promotion | None:
        """The paused trial that should get a free slot of this worker rather than a new trial; None: a new trial."""

    def finish(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """The paused trial that is worth continuing when the budget allows no new trial; None: there is none."""
