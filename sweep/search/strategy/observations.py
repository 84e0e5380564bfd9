"""The reports of a sweep's trials as arrays: what the model is fitted to.

Losses are used as logarithms. A gap is the difference of a log loss to the best one at the same milestone. Gaps are
compressed: large ones grow only with their logarithm, so that diverged trials do not dominate the model.

Invariants: pure; the order in which trials are handed over makes no difference. At most `Policy.max_reports` reports
are fitted, so that a forecast of 10,000 trials costs what one of 100 does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sweep.search.strategy.encoding import Axis, Floats, encode
from sweep.search.strategy.kernel import Ints, Points
from sweep.search.strategy.policy import POLICY, Policy


@dataclass(frozen=True, slots=True)
class TrialData:
    """A trial as the model sees it.

    Args:
        losses: at milestones 1, 2, …; a loss that is not finite counts as the worst finite one.
        features: numbers that predict further progress (see `trial_data`), empty if they are not used.
        running: it is being trained, so that its end will be known without a decision.
        complete: its last loss is that of its end.
        variances: known variances of the logarithms of the losses; empty: none is known.
    """

    number: int
    params: dict[str, object]
    losses: tuple[float, ...]
    features: tuple[float, ...] = ()
    running: bool = False
    complete: bool = False
    variances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Observations:
    """All trials that have reported, n of them, ascending by number.

    Args:
        trials: the trials.
        axes: the axes that encode their hyperparameters.
        milestones: the number of reports of a trial that runs to its end.
        x: their hyperparameters, shape (n, coordinates).
        numbers: their numbers, shape (n,).
        complete: which of them are complete, shape (n,).
        rows: row of each trial by its number.
        y: compressed log losses of each trial by its number, shape (reports,).
        best: smallest log loss at each milestone (from index 0); infinite if no trial has reached it.
        worst: the loss that stands for those that are not finite.
        ranked: losses of all trials at each milestone (from 0), ascending.
        features: how many features each trial has.
        fruitless: complete trials in a row, the newest ones, that were no better than an earlier one.
        variances: known variances of y of each trial by its number, shape (reports,); empty: none is known.
        smooth: if variances are known, y less what the model takes for that noise; empty before the model is fitted.
            Trials are then compared by it, so that a lucky measurement makes none a contender.
        smooth_best: the smallest of that at each milestone (from index 0).
    """

    trials: tuple[TrialData, ...]
    axes: tuple[Axis, ...]
    milestones: int
    policy: Policy
    x: Floats
    numbers: Ints
    complete: npt.NDArray[np.bool_]
    rows: Mapping[int, int]
    y: Mapping[int, Floats]
    best: Floats
    worst: float
    ranked: Mapping[int, Floats]
    features: int
    fruitless: int
    variances: Mapping[int, Floats] = field(default_factory=dict)
    smooth: Mapping[int, Floats] = field(default_factory=dict)
    smooth_best: Floats = field(default_factory=lambda: np.zeros(0))

    def smoothed(self, means: Mapping[int, Floats]) -> Observations:
        """The same observations, with y less what the model takes for known noise.

        Args:
            means: of each trial by its number, shape (reports,).
        """
        longest = max(map(len, means.values()))
        columns = [np.array([mean[at] for mean in means.values() if len(mean) > at]) for at in range(longest)]
        return replace(
            self,
            smooth=means,
            smooth_best=np.array([column.min() for column in columns]),
            ranked={at: np.sort(column) for at, column in enumerate(columns)},
            fruitless=fruitless([float(means[t.number][-1]) for t in self.trials if t.complete], self.policy),
        )

    def end_of(self, trial: TrialData) -> float:
        """y of an observed trial at its last report, without noise if that is known."""
        return float(self.smooth[trial.number][-1] if self.smooth else self.y[trial.number][-1])

    def ends(self, trials: Sequence[TrialData]) -> Points:
        """The ends of trials, observed or not, as points."""
        phi = np.array([trial.features or (0.0,) * self.features for trial in trials])
        if all(trial.number in self.rows for trial in trials):
            x = self.x[[self.rows[trial.number] for trial in trials]]
        else:
            x = encode(self.axes, [trial.params for trial in trials])
        numbers = np.array([trial.number for trial in trials], dtype=np.int64)
        own = np.array([own_deviation(self.gap(trial), self.policy) for trial in trials])
        return Points(x, np.ones(len(trials)), numbers, phi.reshape(len(trials), self.features), own)

    def new_ends(self, x: Floats) -> Points:
        """The ends of trials that do not exist yet, with hyperparameters of shape (m, coordinates)."""
        n = len(x)
        return Points(x, np.ones(n), np.full(n, -1, dtype=np.int64), np.zeros((n, self.features)), np.zeros(n))

    def gap(self, trial: TrialData) -> float:
        """The compressed gap of a trial at its last milestone; 0 without reports."""
        if not trial.losses:
            return 0.0
        if trial.number in self.smooth:
            return float(self.smooth[trial.number][-1] - self.smooth_best[len(trial.losses) - 1])
        gap = log_loss(trial.losses[-1], self.worst) - float(self.best[len(trial.losses) - 1])
        linear = self.policy.linear_gap
        return gap if gap < linear else linear * (1.0 + math.log(gap / linear))  # as `compress`, of one number

    def final_gap(self, trial: TrialData) -> float:
        """The compressed gap of an observed trial at its last milestone, from the compressed log losses."""
        if self.smooth:
            return self.gap(trial)
        return float(self.y[trial.number][-1] - self.best[len(trial.losses) - 1])

    def rank(self, trial: TrialData, milestone: int) -> tuple[int, int]:
        """How many trials were better at a milestone, and how many have reached it."""
        losses = self.ranked[milestone - 1]
        loss = float(self.smooth[trial.number][milestone - 1]) if self.smooth else trial.losses[milestone - 1]
        return int(np.searchsorted(losses, loss if math.isfinite(loss) else math.inf)), len(losses)

    def loss_of_end(self, y: float) -> float:
        """The loss that a compressed log loss at the end stands for, at most the worst that was observed."""
        best, linear = float(self.best[-1]), self.policy.linear_gap
        gap = y - best
        if not math.isfinite(best) or gap <= linear:
            return math.exp(y)
        most = max(math.log(self.worst), y)
        return math.exp(min(most, best + linear * math.exp(min(gap / linear - 1.0, 100.0))))


def observe(
    trials: Sequence[TrialData], axes: tuple[Axis, ...], milestones: int, policy: Policy = POLICY
) -> Observations | None:
    """The observations of a sweep; None if fewer than two trials have reported, or none of them a finite loss."""
    seen = sorted((trial for trial in trials if trial.losses), key=lambda trial: trial.number)
    finite = [loss for trial in seen for loss in trial.losses if math.isfinite(loss) and loss > 0]
    if len(seen) < 2 or not finite:
        return None
    worst = max(finite)
    best, compressed = compressed_losses(seen, worst, milestones, policy)
    y = {trial.number: row[: len(trial.losses)] for trial, row in zip(seen, compressed, strict=True)}
    known = any(trial.variances for trial in seen)
    return Observations(
        trials=tuple(seen),
        axes=axes,
        milestones=milestones,
        policy=policy,
        x=encode(axes, [trial.params for trial in seen]),
        numbers=np.array([trial.number for trial in seen], dtype=np.int64),
        complete=np.array([trial.complete for trial in seen]),
        rows={trial.number: row for row, trial in enumerate(seen)},
        y=y,
        best=best,
        worst=worst,
        ranked=ranked_losses(seen),
        features=max((len(trial.features) for trial in seen), default=0),
        fruitless=fruitless([float(y[trial.number][-1]) for trial in seen if trial.complete], policy),
        variances={t.number: _compressed_variances(t, y[t.number], best, policy) for t in seen} if known else {},
    )


def _compressed_variances(trial: TrialData, y: Floats, best: Floats, policy: Policy) -> Floats:
    """The known variances of a trial's compressed log losses: beyond `Policy.linear_gap` they shrink as gaps do."""
    if not trial.variances:
        return np.zeros(len(y))
    beyond = np.maximum(0.0, (y - best[: len(y)]) / policy.linear_gap - 1.0)
    slope = np.exp(-beyond)  # of linear (1 + log(gap / linear)), in terms of its value
    variances: Floats = np.array(trial.variances) * slope**2
    return variances


def compress(gap: Floats, policy: Policy) -> Floats:
    """Gaps as the model sees them: unchanged up to `Policy.linear_gap`, beyond it by their logarithm."""
    linear = policy.linear_gap
    return np.where(gap < linear, gap, linear * (1.0 + np.log(np.maximum(gap, linear) / linear)))


def log_loss(loss: float, worst: float) -> float:
    """The logarithm of a loss; of `worst` if the loss is larger or is no positive number."""
    return math.log(min(loss, worst) if math.isfinite(loss) and loss > 0 else worst)


def own_deviation(gap: float, policy: Policy) -> float:
    """o of the model, for a trial with this gap."""
    return policy.own_share * max(0.0, gap - policy.contender_gap)


def compressed_losses(
    seen: Sequence[TrialData], worst: float, milestones: int, policy: Policy
) -> tuple[Floats, Floats]:
    """The smallest log loss at each milestone, and all compressed log losses, shape (len(seen), milestones)."""
    longest = max(milestones, *(len(trial.losses) for trial in seen))
    rows = np.full((len(seen), longest), np.inf)
    for row, trial in zip(rows, seen, strict=True):
        row[: len(trial.losses)] = trial.losses
    rows[~np.isfinite(rows) | (rows <= 0)] = worst
    logs = np.log(np.minimum(rows, worst))
    reported = np.arange(longest)[None] < np.array([len(trial.losses) for trial in seen])[:, None]
    best = np.where(reported, logs, np.inf).min(axis=0)
    base = np.where(np.isfinite(best), best, 0.0)
    return best, base + compress(logs - base, policy)


def ranked_losses(seen: Sequence[TrialData]) -> dict[int, Floats]:
    """The losses at each milestone (from 0), ascending, of all trials that have reached it."""
    longest = max(len(trial.losses) for trial in seen)
    columns = ([trial.losses[at] for trial in seen if len(trial.losses) > at] for at in range(longest))
    return {at: np.sort([v if math.isfinite(v) else math.inf for v in losses]) for at, losses in enumerate(columns)}


def fruitless(ends: Sequence[float], policy: Policy) -> int:
    """How many of the last complete trials were no better than an earlier one by `Policy.min_improvement`.

    Args:
        ends: compressed log losses of the complete trials at their ends, by trial number.
    """
    best, count = math.inf, 0
    for end in ends:
        count = 0 if end < best - policy.min_improvement else count + 1
        best = min(best, end)
    return count


def informative_reports(observations: Observations) -> list[tuple[TrialData, int]]:
    """The reports that the model is fitted to, as (trial, milestone): the last ones first, then earlier ones.

    All contenders come first. Of the others every k-th is taken, so that what is left out is spread evenly.
    """
    policy = observations.policy
    gaps = {trial.number: observations.final_gap(trial) for trial in observations.trials}

    def order(trial: TrialData) -> tuple[bool, int, float, int]:
        gap = gaps[trial.number]
        return gap > policy.contender_gap, -len(trial.losses), gap, trial.number

    ordered = sorted(observations.trials, key=order)
    front = [trial for trial in ordered if gaps[trial.number] <= policy.contender_gap][: policy.max_trials * 2 // 3]
    chosen = {trial.number for trial in front}
    back = [trial for trial in ordered if trial.number not in chosen]
    step = max(1, math.ceil(len(back) / max(1, policy.max_trials - len(front))))
    reports = [(trial, len(trial.losses)) for trial in front + back[::step]]
    for trial in front:
        last = len(trial.losses)
        earlier = {max(1, round(last * share)) for share in policy.earlier_shares} - {last}
        reports += [(trial, milestone) for milestone in sorted(earlier, reverse=True)]
    return reports[: policy.max_reports]
