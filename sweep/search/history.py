"""The trials that a sampler sees when it proposes.

Invariants: a paused trial is shown as pruned, with its last value. In Optuna it is running, and samplers take running
trials for bad guesses: they would avoid what may still win. A bound on the number of ended trials keeps the best ones,
by which a TPE sampler divides, and the newest ones, which it weighs most. The search space that all ended trials share
is counted as they end, and equals the one that a TPE sampler would compute from them.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from sweep.model.objectives import Objective

# Best trials that a bound always keeps: twice the 25 that TPE's default gamma counts as good, since ties and paused
# trials come and go.
BEST = 50
# States whose distributions TPE compares.
COMPARED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(slots=True)
class History:
    """The trials of a study by number, updated as they change, so that a view costs only what it shows.

    Args:
        bound: the most ended trials to show; None: all.
        objective: says which trials are the best.
    """

    bound: int | None
    objective: Objective
    _ended: dict[int, FrozenTrial] = field(default_factory=dict)
    _open: dict[int, FrozenTrial] = field(default_factory=dict)
    _numbers: list[int] = field(default_factory=list)
    _ranks: list[tuple[tuple[float, float, float], int]] = field(default_factory=list)
    _spaces: Counter[frozenset[tuple[str, BaseDistribution]]] = field(default_factory=Counter)
    _view: list[FrozenTrial] | None = None

    def add_running(self, trial: FrozenTrial) -> None:
        """Add a trial that was asked or promoted."""
        self._drop(trial.number)
        self._open[trial.number] = trial

    def add_ended(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended, or is shown as ended."""
        self._drop(trial.number)
        self._ended[trial.number] = trial
        insort(self._numbers, trial.number)
        if trial.state in COMPARED:
            self._spaces[frozenset(trial.distributions.items())] += 1
        if (rank := _rank(trial, self.objective)) is not None:
            insort(self._ranks, (rank, trial.number))

    def add_paused(self, trial: FrozenTrial) -> None:
        """Add a paused trial; it is shown as pruned at its last value."""
        shown = copy.copy(trial)
        shown.intermediate_values = dict(trial.intermediate_values)  # Optuna adds later reports to the very same one
        shown.state = TrialState.PRUNED
        if trial.last_step is not None:
            shown.value = trial.intermediate_values[trial.last_step]
        self.add_ended(shown)

    def view(self) -> list[FrozenTrial]:
        """The trials to show, ascending by number; the same list until a trial changes."""
        if self._view is None:
            self._view = self._choose()
        return self._view

    def shared_distributions(self) -> dict[str, BaseDistribution]:
        """The distributions that all complete, pruned and paused trials share, by parameter, sorted by name."""
        spaces = list(self._spaces)
        return dict(sorted(frozenset.intersection(*spaces), key=lambda item: item[0])) if spaces else {}

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
            if old.state in COMPARED:
                space = frozenset(old.distributions.items())
                self._spaces[space] -= 1
                if not self._spaces[space]:
                    del self._spaces[space]
            if (rank := _rank(old, self.objective)) is not None:
                del self._ranks[bisect_left(self._ranks, (rank, number))]


class SharedSearchSpace(IntersectionSearchSpace):
    """The intersection of all trials' search spaces, read from a `History`.

    Optuna's own class compares the distributions of all trials. A sampler that is built anew for each proposal would do
    so each time: most of the cost of a TPE proposal.
    """

    def __init__(self, history: History) -> None:
        super().__init__(include_pruned=True)
        self._history = history

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> dict[str, BaseDistribution]:
        return copy.deepcopy(self._history.shared_distributions())


def _rank(trial: FrozenTrial, objective: Objective) -> tuple[float, float, float] | None:
    """The sort key of TPE: complete trials by value, then pruned ones by progress. None: the trial is left out."""
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return 0.0, 0.0, objective.minimised(trial.value)
    if trial.state is TrialState.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
        return 1.0, -float(trial.last_step), math.inf if math.isnan(value) else objective.minimised(value)
    return None
