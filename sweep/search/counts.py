"""Which trials of a study are open, suspended or ended, as `StudyFacts`.

Invariant: updated as trials change. The facts are computed again only after a change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from sweep.model.facts import StudyFacts
from sweep.search.finals import FinalsPlan
from sweep.search.open_trial import OpenTrial
from sweep.search.statistics import Statistics


@dataclass(slots=True)
class TrialCounts:
    """The trials of a study by what they need from the controller.

    Args:
        finals: the finals that are still to be asked.
        open: trials that were asked and not told.
        suspended: numbers of the open trials that are paused and whose attempts have ended.
        trained: those of them whose attempts had trained to the end before the pause reached them.
        none_to_promote: the strategy had no paused trial worth continuing, and nothing has changed since.
    """

    finals: FinalsPlan
    statistics: Statistics
    open: dict[int, OpenTrial] = field(default_factory=dict)
    suspended: set[int] = field(default_factory=set)
    trained: set[int] = field(default_factory=set)
    none_to_promote: bool = False
    _active: set[int] = field(default_factory=set)
    _facts: StudyFacts | None = None

    def add(self, trial: OpenTrial) -> None:
        """Add an open trial."""
        self.open[trial.number] = trial
        self._active.add(trial.number)
        self.changed()

    def suspend(self, number: int, trained: bool) -> None:
        """Note that the attempt of a paused trial has ended.

        Args:
            trained: it has trained to the trial's end, and its final report has a finite number.
        """
        self._active.discard(number)
        self.suspended.add(number)
        if trained:
            self.trained.add(number)
        self._facts = None

    def resume(self, number: int) -> None:
        """Note that a trial was promoted."""
        self.suspended.discard(number)
        self.trained.discard(number)
        self._active.add(number)
        self.changed()

    def close(self, stored: FrozenTrial) -> None:
        """Count an open trial as ended."""
        del self.open[stored.number]
        self._active.discard(stored.number)
        self.suspended.discard(stored.number)
        self.trained.discard(stored.number)
        self.statistics.add(stored)
        self.changed()

    def nothing_promoted(self) -> None:
        """Note that the strategy has no paused trial worth continuing."""
        self.none_to_promote = True
        self._facts = None

    def changed(self) -> None:
        """Forget the answers that the last change may have made wrong."""
        self.none_to_promote = False
        self._facts = None

    def facts(self, exhausted: bool) -> StudyFacts:
        """The counts.

        Args:
            exhausted: the sampler has nothing left to propose.
        """
        if self._facts is None:
            self._facts = self._count(exhausted)
        return self._facts

    def _count(self, exhausted: bool) -> StudyFacts:
        statistics, counts = self.statistics, self.statistics.counts
        return StudyFacts(
            open=tuple(sorted(self._active)),
            suspended=tuple(sorted(self.suspended)),
            trained=tuple(sorted(self.trained)),
            complete=counts[TrialState.COMPLETE],
            pruned=counts[TrialState.PRUNED],
            failed=counts[TrialState.FAIL] - statistics.cancelled,
            cancelled=statistics.cancelled,
            unbuildable=statistics.unbuildable,
            failure=statistics.failure,
            best=statistics.best,
            best_trial=statistics.best_trial,
            tokens=statistics.tokens,
            exhausted=exhausted,
            none_to_promote=self.none_to_promote,
            seconds=statistics.seconds,
            gain=statistics.gain,
            finals=len(self.finals.remaining(statistics.ranks)),
            searching=bool(self.suspended) or any(not self.open[number].final for number in self._active),
        )
