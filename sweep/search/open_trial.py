"""A trial that was asked and has not ended, as the study keeps it.

Invariant: whatever must outlive the process is in the storage too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import optuna

from sweep.model.facts import Verdict
from trainer.contract import Report


@dataclass(slots=True)
class OpenTrial:
    """A trial that was asked and not told.

    Args:
        params: hyperparameters as the torchtune configuration takes them.
        values: the finite reported values by milestone, as the storage has them.
        objective: the value of the last final report; NaN if that is not finite; None before there is one.
        judged: the milestone of the last report that was judged.
        promoted_at: the milestone of the last pause that a promotion ended. The storage has it too.
        verdict: the verdict that holds; None: the trial continues.
        held_back: reports made after a pause, each with its worker. The study counts them once the trial is promoted.
        final: it is a final, which is never judged.
    """

    number: int
    trial: optuna.Trial
    params: dict[str, Any]
    values: dict[int, float]
    objective: float | None = None
    judged: int | None = None
    promoted_at: int | None = None
    verdict: Verdict | None = None
    held_back: list[tuple[Report, str]] = field(default_factory=list)
    final: bool = False
