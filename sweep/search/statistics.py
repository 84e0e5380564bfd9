"""Statistics of the ended trials of a sweep: counts, costs, the best value, and the expected gain of another trial.

Invariant: updated as trials end, so that reading them costs the same however many there are.
"""

from __future__ import annotations

import statistics
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from sweep.model.objectives import Objective
from sweep.search.attributes import CANCELLED, FINAL, REASON, SECONDS, TOKENS, UNBUILDABLE

# The gain of the next trial is estimated from the last `GAIN_WINDOW` trials, if at least `GAIN_VALUES` completed.
GAIN_WINDOW = 20
GAIN_VALUES = 5


@dataclass(slots=True)
class Statistics:
    """The numbers behind `StudyFacts`. Values are minimised.

    Args:
        objective: says which values are better.
        counts: ended trials by state, finals left out.
        cancelled: those of the failed ones that were cancelled.
        unbuildable: those of the failed ones that could not be built.
        failure: why the last of the other failed ones failed.
        tokens: label tokens of all ended trials, finals included.
        seconds: training time of all ended trials, finals included.
        ranks: value and number of the complete trials, best first.
        recent: value (None unless complete) and seconds of the last trials.
    """

    objective: Objective
    counts: dict[TrialState, int] = field(default_factory=lambda: dict.fromkeys(TrialState, 0))
    cancelled: int = 0
    unbuildable: int = 0
    failure: str = ""
    best: float | None = None
    best_trial: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    ranks: list[tuple[float, int]] = field(default_factory=list)
    recent: deque[tuple[float | None, float]] = field(default_factory=lambda: deque(maxlen=GAIN_WINDOW))

    def add(self, trial: FrozenTrial) -> None:
        """Count an ended trial. Of a final only the cost counts."""
        seconds = float(trial.user_attrs.get(SECONDS, 0.0))
        self.seconds += seconds
        if FINAL in trial.user_attrs:
            self.tokens += int(trial.user_attrs.get(TOKENS, 0))
            return
        self.counts[trial.state] += 1
        if trial.state is TrialState.FAIL:
            self._add_failed(trial)
        self.tokens += int(trial.user_attrs.get(TOKENS, 0))
        complete = trial.state is TrialState.COMPLETE and trial.value is not None
        value = self.objective.minimised(trial.value) if complete else None  # type: ignore[arg-type]
        self.recent.append((value, seconds))
        if value is not None:
            insort(self.ranks, (value, trial.number))
            self.best, self.best_trial = self.ranks[0]

    def _add_failed(self, trial: FrozenTrial) -> None:
        if CANCELLED in trial.user_attrs:
            self.cancelled += 1
            return
        self.unbuildable += UNBUILDABLE in trial.user_attrs
        self.failure = str(trial.user_attrs.get(REASON, ""))

    @property
    def gain(self) -> float | None:
        """The expected decrease of the best value per second of further training; None: too few values.

        This is the expected improvement over the best value if the next value is normally distributed as the recent
        ones (Mockus, 1975), times the share of trials that complete, divided by the mean seconds of a trial.
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
