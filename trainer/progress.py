"""Decides when a running trial reports, and when it counts as diverged.

Invariants: pure, without torch, clock and files. Progress is counted in label tokens, so that trials with different
accumulation report at equal amounts of data.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from trainer.contract import Guard, Step

# A grad_norm is compared with the median of the first ones, of this many at most and at least.
MAX_REFERENCE_STEPS = 5
MIN_REFERENCE_STEPS = 2


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass.

    Args:
        position, total: micro-batches trained so far, and those of the whole trial.
        epoch: the epoch of this micro-batch, from 0.
        tokens: label tokens of the trial so far.
        step: the optimizer step that this micro-batch completed; None if it completed none.
    """

    position: int
    total: int
    epoch: int
    tokens: int
    step: Step | None


@dataclass(slots=True)
class Milestones:
    """Decides after each micro-batch whether a report is due, and keeps the grad_norms since the last one.

    The last report is at the end of the data. A milestone less than half an interval before it is skipped.

    Args:
        every: label tokens between two milestones.
        done: the number of the last milestone.
    """

    every: int
    done: int = 0
    _norms: list[float] = field(default_factory=list)

    def add(self, batch: MicroBatch) -> bool:
        """Process a micro-batch; True if a report is due now."""
        if batch.step is not None:
            self._norms.append(batch.step.grad_norm)
        if batch.position == batch.total:
            return True
        expected_rest = batch.tokens * (batch.total - batch.position) / batch.position
        return batch.tokens >= (self.done + 1) * self.every and expected_rest >= self.every / 2

    def take(self, tokens: int) -> tuple[int, float]:
        """Begin the next interval; returns the number of this milestone and the mean grad_norm (NaN without a step)."""
        self.done = max(self.done + 1, tokens // self.every)
        norm = statistics.fmean(self._norms) if self._norms else math.nan
        self._norms = []
        return self.done, norm

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, which `restore` takes."""
        return {"done": self.done, "norms": list(self._norms)}

    def restore(self, state: dict[str, Any]) -> None:
        self.done, self._norms = state["done"], list(state["norms"])


@dataclass(slots=True)
class DivergenceGuard:
    """Detects a diverged trial: numbers that are not finite, a loss far above its start, exploding gradients."""

    guard: Guard
    _first_loss: float | None = None
    _norms: list[float] = field(default_factory=list)

    def after_step(self, step: Step) -> str | None:
        """Why the trial has diverged at this optimizer step, as a sentence; else None."""
        if not math.isfinite(step.loss):
            return f"loss is {step.loss} at step {step.step}"
        if not math.isfinite(step.grad_norm):
            return f"grad_norm is {step.grad_norm} at step {step.step}"
        if self._first_loss is None:
            self._first_loss = step.loss
        usual = statistics.median(self._norms) if len(self._norms) >= MIN_REFERENCE_STEPS else 0.0
        if len(self._norms) < MAX_REFERENCE_STEPS:
            self._norms.append(step.grad_norm)
        if usual > 0 and step.grad_norm > self.guard.grad_norm_ratio * usual:
            return (
                f"grad_norm {step.grad_norm:.3g} at step {step.step} is over {self.guard.grad_norm_ratio:g} times "
                f"its usual {usual:.3g}"
            )
        return None

    def at_milestone(self, loss: float, val_loss: float | None) -> str | None:
        """Why the trial has diverged at a milestone, as a sentence; else None.

        Args:
            loss: mean since the last milestone, in nats per label token.
            val_loss: the same over the validation data, or None.
        """
        if val_loss is not None and not math.isfinite(val_loss):
            return f"val_loss is {val_loss}"
        if self._first_loss is None or loss <= self.guard.loss_ratio * self._first_loss:
            return None
        return f"loss {loss:.4g} is over {self.guard.loss_ratio:g} times its start of {self._first_loss:.4g}"

    def state(self) -> dict[str, Any]:
        return {"first_loss": self._first_loss, "norms": list(self._norms)}

    def restore(self, state: dict[str, Any]) -> None:
        self._first_loss, self._norms = state["first_loss"], list(state["norms"])
