"""What a sampler sees of a study when it proposes.

Invariants: a paused trial is shown as pruned, with its last value: in Optuna it is running, and a sampler that takes
running trials for bad guesses would be driven away from what may yet win. A bound on how many ended trials are shown
keeps those that a TPE sampler divides by, the best, and the newest, which it weighs most. The space that all ended
trials share is counted as they come, and is the one that a TPE sampler would work out from them.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

# TPE's default gamma sets at most 25 trials apart as good; a few more, as ties and paused trials come and go.
BEST = 50
# Ended trials whose distributions TPE compares.
JUDGED = (TrialState.COMPLETE, TrialState.PRUNED)


class WatchedStudy(optuna.Study):
    """A study that shows a sampler what it is told to; everybody else sees all of it.

    Args:
        shown: answers what to show while a sampler proposes, None at all other times.
    """

    shown: Callable[[], list[FrozenTrial]] | None = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self.shown is None:
            return super()._get_trials(deepcopy, states, use_cache)
        found = [trial for trial in self.shown() if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found


@dataclass(slots=True)
class History:
    """The trials of a study by number, kept as they change, so that showing them costs what is shown.

    Args:
        bound: ended trials to show at most; None: all.
    """

    bound: int | None
    _ended: dict[int, FrozenTrial] = field(default_factory=dict)
    _open: dict[int, FrozenTrial] = field(default_factory=dict)
    _numbers: list[int] = field(default_factory=list)
    _ranks: list[tuple[tuple[float, float, float], int]] = field(default_factory=list)
    _spaces: Counter[frozenset[tuple[str, BaseDistribution]]] = field(default_factory=Counter)
    _view: list[FrozenTrial] | None = None

    def running(self, trial: FrozenTrial) -> None:
        """A trial was asked for, or promoted."""
        self._drop(trial.number)
        self._open[trial.number] = trial

    def ended(self, trial: FrozenTrial) -> None:
        """A trial was told, or is shown as if it had been."""
        self._drop(trial.number)
        self._ended[trial.number] = trial
        insort(self._numbers, trial.number)
        if trial.state in JUDGED:
            self._spaces[frozenset(trial.distributions.items())] += 1
        if (rank := _rank(trial)) is not None:
            insort(self._ranks, (rank, trial.number))

    def paused(self, trial: FrozenTrial) -> None:
        """A trial waits for its promotion."""
        shown = copy.copy(trial)
        shown.state = TrialState.PRUNED
        if trial.last_step is not None:
            shown.value = trial.intermediate_values[trial.last_step]
        self.ended(shown)

    def show(self) -> list[FrozenTrial]:
        """What a sampler shall see, ascending by number; the same list until a trial changes."""
        if self._view is None:
            self._view = self._choose()
        return self._view

    def space(self) -> dict[str, BaseDistribution]:
        """The parameters that all complete, pruned and paused trials have, with the same distribution; by name."""
        kinds = list(self._spaces)
        return dict(sorted(frozenset.intersection(*kinds), key=lambda one: one[0])) if kinds else {}

    def _choose(self) -> list[FrozenTrial]:
        numbers = set(self._open)
        if self.bound is None or len(self._numbers) <= self.bound:
            numbers.update(self._numbers)
        else:
            numbers.update(number for _, number in self._ranks[:BEST])
            numbers.update(self._numbers[len(self._numbers) - max(0, self.bound - BEST) :])
        return [self._ended[n] if n in self._ended else self._open[n] for n in sorted(numbers)]

    def _drop(self, number: int) -> None:
        self._view = None
        self._open.pop(number, None)
        old = self._ended.pop(number, None)
        if old is not None:
            del self._numbers[bisect_left(self._numbers, number)]
            if old.state in JUDGED:
                kind = frozenset(old.distributions.items())
                self._spaces[kind] -= 1
                if not self._spaces[kind]:
                    del self._spaces[kind]
            if (rank := _rank(old)) is not None:
                del self._ranks[bisect_left(self._ranks, (rank, number))]


class KnownSpace(IntersectionSearchSpace):
    """What Optuna's own class finds by comparing the distributions of all trials, which a sampler that is made anew for
    each proposal would do each time: most of what a TPE proposal costs."""

    def __init__(self, history: History) -> None:
        super().__init__(include_pruned=True)
        self._history = history

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> dict[str, BaseDistribution]:
        return copy.deepcopy(self._history.space())


def _rank(trial: FrozenTrial) -> tuple[float, float, float] | None:
    """TPE's order: complete trials by value, then pruned ones, the furthest first. None: it takes no part."""
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return 0.0, 0.0, trial.value
    if trial.state is TrialState.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
        return 1.0, -float(trial.last_step), math.inf if math.isnan(value) else value
    return None
