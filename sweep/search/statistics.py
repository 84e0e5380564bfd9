"""What the ended trials of a sweep come to: counts, costs, the best, and what another trial may gain.

Invariant: kept as trials end, so that asking costs nothing however many there are.
"""

from __future__ import annotations

import statistics
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from sweep.search.storage import CANCELLED, FINAL, SECONDS, TOKENS

# Trials of the recent past from which the gain of the next one is judged, and the fewest values for that.
GAIN_WINDOW = 20
GAIN_VALUES = 5


@dataclass(slots=True)
class Statistics:
    """What `StudyFacts` counts."""

    counts: dict[TrialState, int] = field(default_factory=lambda: dict.fromkeys(TrialState, 0))
    cancelled: int = 0
    best: float | None = None
    best_trial: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    ranks: list[tuple[float, int]] = field(default_factory=list)
    recent: deque[tuple[float | None, float]] = field(default_factory=lambda: deque(maxlen=GAIN_WINDOW))

    def add(self, trial: FrozenTrial) -> None:
        """Count an ended trial; of finals, what they cost alone."""
        seconds = float(trial.user_attrs.get(SECONDS, 0.0))
        self.seconds += seconds
        if FINAL in trial.user_attrs:
            self.tokens += int(trial.user_attrs.get(TOKENS, 0))
            return
        self.counts[trial.state] += 1
        self.cancelled += trial.state is TrialState.FAIL and CANCELLED in trial.user_attrs
        self.tokens += int(trial.user_attrs.get(TOKENS, 0))
        value = trial.value if trial.state is TrialState.COMPLETE else None
        self.recent.append((value, seconds))
        if value is not None:
            insort(self.ranks, (value, trial.number))
            self.best, self.best_trial = self.ranks[0]

    @property
    def gain(self) -> float | None:
        """Expected fall of the best value for each second of training more.

        Expected improvement over the best under a normal distribution of the recent complete values (Mockus, 1975),
        times the share of trials that complete, over the mean seconds of a trial.
        """
        values = [value for value, _ in self.recent if value is not None]
        cost = sum(seconds for _, seconds in self.recent) / max(1, len(self.recent))
        if len(values) < GAIN_VALUES or self.best is None or cost <= 0:
            return None
        mean, spread = statistics.fmean(values), statistics.stdev(values)
        if spread == 0:
            return 0.0
        normal, z = statistics.NormalDist(), (self.best - mean) / spread
        improvement = spread * (z * normal.cdf(z) + normal.pdf(z))
        return improvement * len(values) / len(self.recent) / cost
