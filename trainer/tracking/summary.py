"""Keys and values of a trial's run in W&B that say how the trial ended.

Invariant: pure, without W&B's client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.contract import Outcome, OutcomeKind, StopCause

# The keys of a trial's state, and of its reason, in its run's summary.
STATE, REASON = "trial/state", "trial/reason"


def summary_of(outcome: Outcome) -> dict[str, Any]:
    """The summary that tells a person how the trial ended."""
    state = outcome.cause.value if outcome.cause is not None else outcome.kind.value
    if outcome.kind is OutcomeKind.COMPLETED:
        state = "complete"  # the word of the sweep's own reports
    return {STATE: state, REASON: outcome.reason, **score_summary(outcome.scores)}


def score_summary(scores: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's scores, by their keys in a run's summary."""
    return {f"eval/{name}": value for name, value in scores.items()}


def metric_summary(scores: Mapping[str, float]) -> dict[str, float]:
    """What a trial measured while it trained, by its keys in a run's history and summary."""
    return {f"metric/{name}": value for name, value in scores.items()}


def exit_code(outcome: Outcome | None) -> int:
    """A run's exit code: 143 for a preempted attempt, 1 for one that failed or has no outcome, else 0."""
    if outcome is None or outcome.kind is OutcomeKind.FAILED:
        return 1
    return 143 if outcome.cause is StopCause.PREEMPTED else 0
