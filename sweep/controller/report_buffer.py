"""Keeps reports that a round could not process and presents them again in the next round.

A channel shows each report once. A round may fail in the middle, for example because the file system times out.

Invariant: every report is handed on, in order, until one call that handles it returns without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sweep.controller.ports import Channel, ObservedAttempt, ObservedWorker
from trainer.contract import Report

ObservedTrials = Mapping[int, list[ObservedAttempt]]
T = TypeVar("T")


@dataclass
class ReportBuffer:
    """Observes a channel on behalf of a caller whose rounds may fail in the middle."""

    channel: Channel
    _unprocessed: dict[int, Mapping[int, Sequence[Report]]] = field(default_factory=dict)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[ObservedTrials, Mapping[str, ObservedWorker]]:
        """What the channel shows, with unprocessed reports in front of the new ones.

        Raises:
            RetryLater, OSError: see `Channel.observe`.
        """
        observed, observed_workers = self.channel.observe(trials, workers)
        unprocessed = {number: self._unprocessed.pop(number) for number in [*self._unprocessed] if number in observed}
        if unprocessed:
            # new lists in a new mapping: the channel may show its own ones again
            observed = {**observed, **{n: _with_earlier(observed[n], unprocessed[n]) for n in unprocessed}}
        return observed, observed_workers

    def process(self, observed: ObservedTrials, handle: Callable[[int, list[ObservedAttempt]], T]) -> list[T]:
        """Call `handle` with each trial's number and attempts, and return its results.

        If a call raises, the reports of this trial and of all later ones are kept for the next `observe`.

        Raises:
            Exception: whatever `handle` raises.
        """
        results: list[T] = []
        try:
            for number, attempts in observed.items():
                results.append(handle(number, attempts))
        except Exception:
            for number in list(observed)[len(results) :]:
                self._unprocessed[number] = {attempt.number: attempt.reports for attempt in observed[number]}
            raise
        return results


def _with_earlier(
    attempts: Sequence[ObservedAttempt], earlier: Mapping[int, Sequence[Report]]
) -> list[ObservedAttempt]:
    """These attempts with earlier reports, by attempt, in front of their own."""
    return [replace(a, reports=(*earlier.get(a.number, ()), *a.reports)) for a in attempts]
