"""What the budget of a sweep still allows to start, and the reason if it allows nothing.

Invariant: a pure function of facts and limits; imports nothing that acts.
"""

from __future__ import annotations

import math
from functools import cached_property

from sweep.model.facts import StudyFacts, View
from sweep.model.limits import Limits


def trials_left(study: StudyFacts, limits: Limits) -> float:
    """How many more trials the trial limit and the sampler allow; infinity if there is no limit."""
    if study.exhausted:
        return 0
    return math.inf if limits.trials is None else max(0, limits.trials - study.asked)


class Budget:
    """What is left in one view of the limits on trials, tokens, time, GPU-hours, target and expected gain."""

    def __init__(self, view: View, limits: Limits) -> None:
        self._view, self._limits = view, limits

    @cached_property
    def allows_more(self) -> bool:
        """Whether anything more may be started, be it a new trial or a paused one."""
        used_up = self._over_tokens or self._over_time or self._over_gpu_hours
        return not (self.target_reached or used_up or self._gains_little)

    @cached_property
    def new_trials(self) -> float:
        """How many more new trials are allowed; infinity if there is no limit."""
        return trials_left(self._view.study, self._limits) if self.allows_more else 0

    @cached_property
    def target_reached(self) -> bool:
        best = self._view.study.best
        return self._limits.target is not None and best is not None and best <= self._limits.target

    @cached_property
    def _over_tokens(self) -> bool:
        return self._limits.tokens is not None and self._view.tokens >= self._limits.tokens

    @cached_property
    def _over_time(self) -> bool:
        return self._limits.seconds is not None and self._view.seconds >= self._limits.seconds

    @cached_property
    def _over_gpu_hours(self) -> bool:
        gpu_hours = self._view.trained / self._trials_per_gpu / 3600
        return self._limits.gpu_hours is not None and gpu_hours >= self._limits.gpu_hours

    @cached_property
    def _gains_little(self) -> bool:
        gain, least = self._view.study.gain, self._limits.min_gain
        return least is not None and gain is not None and gain * self._trials_per_gpu * 3600 < least

    @cached_property
    def _trials_per_gpu(self) -> float:
        """How many trials train on a GPU at a time; if workers choose that themselves, the mean over all workers."""
        slots = [worker.slots or self._limits.slots for worker in self._view.workers]
        return sum(slots) / len(slots) if slots else self._limits.slots

    @cached_property
    def reason(self) -> str:
        """Why nothing more is started; only meaningful if that is so."""
        limits = self._limits
        if self.target_reached:
            return f"the target {limits.target:g} was reached"
        if self._view.study.exhausted:
            return "the sampler has proposed all it can"
        if limits.trials is not None and self._view.study.asked >= limits.trials:
            return f"all {limits.trials} trials have ended"
        if self._over_tokens:
            return f"the budget of {limits.tokens:,} tokens is spent"
        if self._over_gpu_hours:
            return f"the budget of {limits.gpu_hours:g} GPU-hours is spent"
        if self._gains_little:
            return f"another GPU-hour is expected to gain less than {limits.min_gain:g}"
        return f"the budget of {limits.seconds or 0:g} s is spent"
