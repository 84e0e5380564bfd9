"""What a sweep may still begin, and why it may not.

Invariant: a pure function of facts and limits; imports nothing that acts.
"""

from __future__ import annotations

import math
from functools import cached_property

from sweep.model import Limits, StudyFacts, View


def trials_left(study: StudyFacts, limits: Limits) -> float:
    """How many more trials may be asked for as far as their number and the sampler go; infinity without a limit."""
    if study.exhausted:
        return 0
    return math.inf if limits.trials is None else max(0, limits.trials - study.asked)


class Budget:
    """What trials, tokens, time, GPU-hours, a target and the expected gain leave."""

    def __init__(self, view: View, limits: Limits) -> None:
        self._view, self._limits = view, limits

    @cached_property
    def target_reached(self) -> bool:
        best = self._view.study.best
        return self._limits.target is not None and best is not None and best <= self._limits.target

    @cached_property
    def _over_tokens(self) -> bool:
        return self._limits.tokens is not None and self._view.tokens >= self._limits.tokens

    @cached_property
    def askable(self) -> float:
        """How many more trials the budget allows to ask for; infinity without a limit of trials."""
        return trials_left(self._view.study, self._limits) if self.left else 0

    @cached_property
    def left(self) -> bool:
        """Whether tokens and time allow to begin anything more, be it a new trial or a paused one."""
        over_time = self._limits.seconds is not None and self._view.seconds >= self._limits.seconds
        return not (self.target_reached or self._over_tokens or over_time or self._over_gpu_hours or self._gains_little)

    @cached_property
    def _gpu_hours(self) -> float:
        return self._view.trained / self._slots / 3600

    @cached_property
    def _over_gpu_hours(self) -> bool:
        return self._limits.gpu_hours is not None and self._gpu_hours >= self._limits.gpu_hours

    @cached_property
    def _gains_little(self) -> bool:
        gain = self._view.study.gain
        return (
            self._limits.min_gain is not None and gain is not None and self._per_gpu_hour(gain) < self._limits.min_gain
        )

    def _per_gpu_hour(self, gain: float) -> float:
        return gain * self._slots * 3600

    @cached_property
    def _slots(self) -> float:
        """Trials that share a worker; where workers choose, what they hold now on average."""
        held = [worker.slots or self._limits.slots for worker in self._view.workers]
        return sum(held) / len(held) if held else self._limits.slots

    @cached_property
    def reason(self) -> str:
        """Why nothing more is begun, where nothing is."""
        if self.target_reached:
            return f"the target {self._limits.target:g} was reached"
        if self._view.study.exhausted:
            return "the sampler has proposed all it can"
        if self._limits.trials is not None and self._view.study.asked >= self._limits.trials:
            return f"all {self._limits.trials} trials have ended"
        if self._over_tokens:
            return f"the budget of {self._limits.tokens:,} tokens is spent"
        if self._over_gpu_hours:
            return f"the budget of {self._limits.gpu_hours:g} GPU-hours is spent"
        if self._gains_little:
            return f"another GPU-hour is expected to gain less than {self._limits.min_gain:g}"
        return f"the budget of {self._limits.seconds or 0:g} s is spent"
