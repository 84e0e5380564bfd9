"""What the next step of a trial is worth: the forecast is turned into one number for each trial.

The value of training a trial to its end is the logarithm of its expected improvement over the best end, for each
milestone that remains, minus two penalties that do not depend on the model:

- proximity: a trial close to a complete one would show little that is new;
- rank: a trial in the worse half at its milestone. A model that has seen no complete trial in some region may expect
  improvements there that never come, and pay for them one trial after another.

Some trials continue whatever they are worth: see `Acquisition.is_guaranteed`.

Invariants: pure and deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from sweep.search.strategy.encoding import Floats, gaps
from sweep.search.strategy.forecast import Forecast
from sweep.search.strategy.kernel import Points
from sweep.search.strategy.observations import Observations, TrialData


@dataclass(frozen=True)
class Acquisition:
    """Values of the next steps of a sweep.

    Args:
        penalties: rank penalty of each observed trial, shape (n,).
        neighbour: number of the unfinished trial that is closest to one of the best, if its turn is now; else -1.
    """

    forecast: Forecast
    penalties: Floats
    neighbour: int

    @property
    def observations(self) -> Observations:
        return self.forecast.observations

    def assuming(self, running: Sequence[TrialData]) -> Acquisition:
        """The values if these trials end as the forecast expects them to."""
        return replace(self, forecast=self.forecast.assuming(running))

    def value(self, at: Points, remaining: Floats) -> Floats:
        """The log expected improvement for each remaining milestone at these ends, minus the proximity penalty.

        Expected improvement: Jones, Schonlau and Welch, Efficient Global Optimization, 1998, eq. 15. Its logarithm:
        Ament et al., Unexpected Improvements to Expected Improvement, 2023. By cost: Swersky, Snoek and Adams,
        Multi-Task Bayesian Optimization, 2013.

        If other trials run, the incumbent is measured against the runner-up until a trial is complete. It cannot
        improve on itself: it would be paused for being the best until the second best has ended. A single worker
        looks further before it commits itself; its sweeps took equally long either way.

        Args:
            remaining: milestones that remain to each end, shape (len(at),).
        """
        seen = self.forecast
        mean, sd = seen.ends(at)
        target = np.full(len(at), seen.incumbent.target)
        if seen.others_running and seen.runner_up is not None:
            incumbent = np.flatnonzero(at.trial == seen.incumbent.end.trial[0])
            if len(incumbent):
                target[incumbent] = seen.runner_up.target
                sd[incumbent] = seen.model.predict(at.rows(incumbent), seen.runner_up.end)[1]
        return log_improvement((target - mean) / sd) + np.log(sd) - np.log(remaining) - self._proximity_penalty(at)

    def value_of_trials(self, trials: Sequence[TrialData], guarantee: bool = True) -> Floats:
        """The values of continuing these trials, minus their rank penalties.

        Args:
            guarantee: whether a trial that continues in any case is worth more than all others.
        """
        policy, milestones = self.observations.policy, self.observations.milestones
        offsets = [
            policy.guarantee_bonus * (guarantee and self.is_guaranteed(trial)) - rank_penalty(self.observations, trial)
            for trial in trials
        ]
        remaining = np.array([float(max(1, milestones - len(trial.losses))) for trial in trials])
        values: Floats = self.value(self.observations.ends(trials), remaining) + np.array(offsets)
        return values

    def value_of_new(self, x: Floats) -> Floats:
        """The values of new trials with hyperparameters of shape (m, coordinates)."""
        return self.value(self.observations.new_ends(x), np.full(len(x), float(self.observations.milestones)))

    def is_guaranteed(self, trial: TrialData) -> bool:
        """Whether a trial continues whatever the forecast says.

        It does if it was among the best 1/k of the trials at the last of the milestones 1, k, k², … that it has
        reached, with k = `Policy.guaranteed_fraction`. So what asynchronous successive halving would train is trained,
        however wrong the forecast is. And while complete trials bring no improvement, every second one is the
        `neighbour`.
        """
        if not trial.losses or trial.complete:
            return False
        if trial.number == self.neighbour:
            return True
        fraction = self.observations.policy.guaranteed_fraction
        rung = fraction ** int(math.log(len(trial.losses) + 0.5, fraction))
        rank, reached = self.observations.rank(trial, rung)
        return rank < reached // fraction

    def _proximity_penalty(self, at: Points) -> Floats:
        """What is subtracted for a trial close to a complete one, and for a new trial close to any.

        A new trial also gets the rank penalty of the closest trial. Complete trials thus spread over all that may be
        best instead of repeating the best one, as in local penalisation (Gonzalez et al., Batch Bayesian Optimization
        via Local Penalization, 2016). The radius shrinks as they fill it.
        """
        if not at.x.shape[1]:
            return np.zeros(len(at))
        seen = self.observations
        complete = seen.x[seen.complete]
        penalty = _near(seen, at.x, complete, at.trial[:, None] == seen.numbers[seen.complete][None])
        new = at.trial < 0
        if new.any():
            unfinished = seen.x[~seen.complete]
            penalty[new] += self.penalties[gaps(at.x[new], seen.x).argmin(axis=1)]
            none = np.zeros((int(new.sum()), len(unfinished)), dtype=np.bool_)
            penalty[new] += _near(seen, at.x[new], unfinished, none)
        return penalty


def acquisition(forecast: Forecast) -> Acquisition:
    """The values of the next steps by a forecast."""
    observations = forecast.observations
    penalties = np.array([rank_penalty(observations, trial) for trial in observations.trials])
    return Acquisition(forecast, penalties, _neighbour(forecast, penalties))


def centres(observations: Observations) -> int:
    """How many of the best complete trials are searched around."""
    policy = observations.policy
    return 1 if observations.fruitless <= policy.patience else policy.searched_centres


def radius(observations: Observations) -> float:
    """The share of every coordinate within which trials cause a proximity penalty, if there are few of them."""
    policy = observations.policy
    return policy.radius / (1.0 + max(0, observations.fruitless - policy.patience) / policy.halve_radius_after)


def rank_penalty(observations: Observations, trial: TrialData) -> float:
    """What is subtracted for a trial in the worse half of those that have reached its milestone.

    Nothing for the best `Policy.unpenalised` and for the median of the others, `Policy.rank_penalty` for the last of
    many.
    """
    if not trial.losses or trial.complete:
        return 0.0
    policy = observations.policy
    rank, reached = observations.rank(trial, len(trial.losses))
    return policy.rank_penalty * max(0.0, 2.0 * (rank - policy.unpenalised) / reached - 1.0)


def log_improvement(z: Floats) -> Floats:
    """log(z Φ(z) + φ(z)), numerically stable for z far below zero."""
    log_pdf = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    far = np.minimum(z, -1.0)
    ratio = np.exp(log_ndtr(far) + 0.5 * far**2 + 0.5 * math.log(2 * math.pi))  # Mills' ratio
    tail = log_pdf + np.log(np.maximum(1.0 + far * ratio, 1e-12))
    near = np.log(np.maximum(z * ndtr(z) + np.exp(log_pdf), 1e-300))
    return np.where(z > -1.0, near, np.where(z > -50.0, tail, log_pdf - 2.0 * np.log(np.maximum(-z, 1.0))))


def _neighbour(forecast: Forecast, penalties: Floats) -> int:
    """The unfinished trial closest to one of the best, without penalties, at every second complete trial; -1: none."""
    seen = forecast.observations
    if not seen.fruitless or int(seen.complete.sum()) % 2:
        return -1
    best = seen.x[forecast.order[: centres(seen)]]
    distance = np.sqrt(((seen.x[:, None] - best[None]) ** 2).sum(axis=2)).min(axis=1)
    close = gaps(seen.x, seen.x[seen.complete]).min(axis=1) < radius(seen)
    distance[seen.complete | (penalties > 0) | close] = np.inf
    row = int(distance.argmin())
    return int(seen.numbers[row]) if math.isfinite(distance[row]) else -1


def _near(observations: Observations, x: Floats, others: Floats, same: npt.NDArray[np.bool_]) -> Floats:
    """The penalty for points close to others: `Policy.proximity_penalty` at one of them, 0 a radius away from all.

    Args:
        same: which of the others are the same trial, and count as far away; shape (len(x), len(others)).
    """
    if not len(others):
        return np.zeros(len(x))
    policy = observations.policy
    reach = radius(observations) * min(1.0, (policy.full_radius_trials / len(others)) ** (1.0 / x.shape[1]))
    gap = np.where(same, np.inf, gaps(x, others)).min(axis=1)
    penalty: Floats = policy.proximity_penalty * np.maximum(0.0, 1.0 - gap / reach)
    return penalty
