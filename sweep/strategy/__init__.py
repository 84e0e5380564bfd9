"""What a strategy sees and says: the curves of a sweep's trials, verdicts and promotions.

Invariants: a strategy is a pure function of the curves. It keeps nothing between two calls that would change its
answers, reads no clock and draws no random number, so that the same curves give the same verdict after a restart.
A trial is stopped or paused after a report, never before its first and never at its last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sweep.model import Verdict
from trainer.contract import Report


class Standing(StrEnum):
    """Where a trial stands, as a strategy sees it."""

    RUNNING = "running"
    PAUSED = "paused"
    PRUNED = "pruned"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial with all that it has reported, ascending by milestone."""

    number: int
    params: Mapping[str, Any]
    reports: tuple[Report, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial that goes on, why, and the numbers that say so."""

    trial: int
    reason: str
    basis: Mapping[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    """Decides which trials go on.

    `curves` maps each trial's number to what is known of it; `milestones` is how many reports a full trial makes.
    """

    def verdict(self, number: int, curves: Mapping[int, Curve], milestones: int) -> Verdict | None:
        """Whether the trial stops or pauses after its last report; None: it goes on."""
        ...

    def promote(self, curves: Mapping[int, Curve], milestones: int) -> Promotion | None:
        """The paused trial that deserves the next free slot more than a new one; None: ask for a new one."""
        ...
