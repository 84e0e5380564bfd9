"""Which finals were asked: the best trials, each trained again with further seeds.

Invariant: a final is asked once, even if a controller died between enqueuing and starting it.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from sweep.search.attributes import FINAL
from sweep.search.storage import final_of

# The number of the trial that is repeated, and the index of the seed.
Final = tuple[int, int]


class FinalsPlan:
    """The finals of a sweep.

    Args:
        finalists: how many of the best trials are trained again.
        seeds: with how many seeds each of them is trained again.
        trials: all trials that the study holds so far.
    """

    def __init__(self, finalists: int, seeds: int, trials: Sequence[FrozenTrial]) -> None:
        finals = [trial for trial in trials if FINAL in trial.user_attrs]
        self._finalists, self._seeds = finalists, seeds
        named = [(final, trial) for trial in finals if (final := final_of(trial)) is not None]
        self._enqueued = {final: trial.number for final, trial in named if trial.state is TrialState.WAITING}
        self._started = {final for final, trial in named if trial.state is not TrialState.WAITING}

    def remaining(self, ranks: Sequence[tuple[float, int]]) -> list[Final]:
        """The finals that were not asked yet: each of the best trials with each seed, seed by seed.

        Args:
            ranks: minimised value and number of the complete trials, best first.
        """
        best = [number for _, number in ranks[: self._finalists]]
        planned = [(number, seed) for seed in range(self._seeds) for number in best]
        return [final for final in planned if final not in self._started]

    def start(self, final: Final) -> int | None:
        """Mark a final as asked; returns the number of its own trial if an earlier controller enqueued it."""
        self._started.add(final)
        return self._enqueued.pop(final, None)
