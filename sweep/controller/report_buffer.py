"""ReportBuffer at a channel, which shows each report once: whatever could not be taken in is shown again.

Invariant: a report is handed on, in its order, until that has gone without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sweep.controller.ports import Channel, ObservedAttempt, ObservedWorker
from trainer.contract import Report

Sights = dict[int, list[ObservedAttempt]]
T = TypeVar("T")


@dataclass
class ReportBuffer:
    """A channel's sights for somebody whose rounds may fail in the middle."""

    channel: Channel
    _missed: dict[int, Mapping[int, Sequence[Report]]] = field(default_factory=dict)

    def look(self, trials: Sequence[int], workers: Sequence[str]) -> tuple[Sights, dict[str, ObservedWorker]]:
        """What the channel shows, after what was shown in vain before; raises what `Channel.observe` does."""
        attempts, seen = self.channel.observe(trials, workers)
        for number in [number for number in self._missed if number in attempts]:
            missed = self._missed.pop(number)
            sights = [replace(one, reports=(*missed.get(one.number, ()), *one.reports)) for one in attempts[number]]
            attempts = {**attempts, number: sights}  # the channel's own may be the ones that it will show again
        return attempts, seen

    def take(self, attempts: Sights, take: Callable[[int, list[ObservedAttempt]], T]) -> list[T]:
        """Hand each trial's sights on; where that raises, this trial's and the later ones' wait for the next look."""
        taken: list[T] = []
        try:
            for number, sights in attempts.items():
                taken.append(take(number, sights))
        except Exception:
            for number in list(attempts)[len(taken) :]:
                self._missed[number] = {sight.number: sight.reports for sight in attempts[number]}
            raise
        return taken
