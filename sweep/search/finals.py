"""Which of the best trials were asked for again, as finals, and with which seeds.

Invariant: a final is asked for once, also where a controller died between queueing it and starting it.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from sweep.search.storage import FINAL, final_of

# The trial that is repeated, and the number of the seed.
Final = tuple[int, int]


class Repeats:
    """The finals of a sweep.

    Args:
        finalists, seeds: how many of the best are trained again, and with how many seeds.
        trials: all that the study holds so far.
    """

    def __init__(self, finalists: int, seeds: int, trials: Sequence[FrozenTrial]) -> None:
        finals = [trial for trial in trials if FINAL in trial.user_attrs]
        self._finalists, self._seeds = finalists, seeds
        self._queued = {final_of(trial): trial.number for trial in finals if trial.state is TrialState.WAITING}
        self._begun = {final_of(trial) for trial in finals if trial.state is not TrialState.WAITING}

    def left(self, ranks: Sequence[tuple[float, int]]) -> list[Final]:
        """Finals not asked for yet: each of the best with each seed, seed by seed.

        Args:
            ranks: value and number of the complete trials, best first.
        """
        best = [number for _, number in ranks[: self._finalists]]
        wanted = [(number, seed) for seed in range(self._seeds) for number in best]
        return [final for final in wanted if final not in self._begun]

    def begin(self, final: Final) -> int | None:
        """It is asked for from now on; its own number where it was queued before."""
        self._begun.add(final)
        return self._queued.pop(final, None)
