"""An Optuna sampler that learns from partial learning curves: it proposes what is worth most by the forecast.

Invariants: a proposal is a function of the study's trials, the trial's number and the seed. Running trials count by
their reports, and are assumed to end as forecast, so that workers do not all try the same. A parameter that only some
trials have is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.model.objectives import Objective
from sweep.search.optuna_private import visible_trials
from sweep.search.strategy.acquisition import Acquisition, acquisition, centres, radius
from sweep.search.strategy.encoding import Axis, Floats, axis, encode, gaps, is_number
from sweep.search.strategy.forecast import forecast
from sweep.search.strategy.measure import AUTO, Measure
from sweep.search.strategy.observations import Observations, TrialData

# States of the trials that proposals are based on.
STATES = (TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)


class ForecastSampler(optuna.samplers.BaseSampler):
    """Proposes the configuration with the greatest expected improvement per milestone.

    Args:
        milestones: the number of reports of a trial that runs to its end; null: the most that any trial has made.
        design: trials that are spread over the space before the forecast proposes any; at least 2.
        candidates: configurations among which each proposal is the best; at least 1.
        prior: where the optimum is expected, by parameter: `centre` and `spread`, the standard deviation in decades.
            The prior weighs as much as one complete trial: its weight falls with the number of reports (Hvarfner et
            al., πBO, 2022).
        objective: what the study searches for. None: a loss, in the study's direction.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        milestones: int | None = None,
        design: int = 6,
        candidates: int = 192,
        prior: Mapping[str, Mapping[str, float]] | None = None,
        seed: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        if design < 2 or candidates < 1:
            raise ValueError("design must be at least 2, and candidates at least 1")
        self._milestones, self._design, self._candidates = milestones, design, candidates
        self._prior = {key: _centre_and_spread(key, given) for key, given in (prior or {}).items()}
        self._measure = Measure(objective or Objective(AUTO))
        self._rng = np.random.default_rng(seed)
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that all trials have with the same distribution."""
        others = [t for t in visible_trials(study, STATES) if t.number != trial.number and t.params]
        if not others:
            return {}
        shared = dict(others[-1].distributions)
        for other in others:
            shared = {k: v for k, v in shared.items() if other.distributions.get(k) == v and not v.single()}
        return dict(sorted(shared.items()))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        trials = [t for t in visible_trials(study, STATES) if t.number != trial.number and t.params]
        axes = tuple(_axis(key, space) for key, space in search_space.items())
        longest = self._milestones or max((other.last_step or 1 for other in trials), default=1)
        data = [_trial_data(other, search_space, self._measure, longest) for other in trials]
        milestones = self._positions(data)
        fitted = forecast(data, axes, milestones) if len(trials) >= self._design else None
        if fitted is None:
            return self._spread(search_space, trials[0] if trials else None, trial.number)
        values = acquisition(fitted)
        params = [self._draw(search_space) for _ in range(self._candidates)]
        if trial.number % 2 and values.observations.fruitless:
            params = self._neighbours(values, data, params, trial.number // 2) or params
        return params[int(np.argmax(self._value(values, data, encode(axes, params), params)))]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _positions(self, data: Sequence[TrialData]) -> int:
        """The number of measurements of a trial that runs to its end."""
        if self._milestones:
            return self._measure.positions(self._milestones)
        return max((len(other.losses) for other in data), default=1) or 1

    def _neighbours(
        self, values: Acquisition, data: Sequence[TrialData], drawn: Sequence[dict[str, Any]], turn: int
    ) -> list[dict[str, Any]]:
        """Configurations that differ from a best complete trial in one parameter, and noticeably from every trial.

        While complete trials bring no improvement, every second proposal is one of these. So a forecast that is wrong
        near the best trials is corrected. After `Policy.rotate_after` such trials the parameters are varied in turn,
        whatever the forecast says: else the one that it trusts most would be varied over and over.

        Args:
            drawn: random configurations, which give the values of the varied parameter.
            turn: the number of the parameter whose turn it is.
        """
        seen, count = values.observations, len(drawn)
        axes, policy = seen.axes, seen.policy
        best = sorted((trial for trial in data if trial.complete), key=lambda trial: _end(seen, trial))[: centres(seen)]
        bases = [best[n % len(best)].params for n in range(count)]
        existing, centre = encode(axes, [trial.params for trial in data]), encode(axes, bases)
        for later in range(len(axes)):
            rotate = seen.fruitless > policy.rotate_after
            turns = [turn + later if rotate else n // len(best) for n in range(count)]
            varied = [axes[at % len(axes)] for at in turns]
            params = [{**base, a.key: new[a.key]} for base, a, new in zip(bases, varied, drawn, strict=True)]
            x = encode(axes, params)
            near = np.abs(x - centre).max(axis=1) <= policy.neighbour_distance
            near |= np.array([bool(a.categories) for a in varied])
            kept = near & (gaps(x, existing).min(axis=1) > policy.neighbour_spacing * radius(seen))
            if kept.any():
                return [candidate for candidate, keep in zip(params, kept, strict=True) if keep]
        return []

    def _value(
        self, values: Acquisition, data: Sequence[TrialData], x: Floats, params: Sequence[dict[str, Any]]
    ) -> Floats:
        """The value of new trials by the forecast and the prior, shape (len(params),).

        Args:
            x: the encoded hyperparameters, shape (len(params), coordinates).
        """
        running = [trial for trial in data if trial.running]
        reports = sum(len(trial.losses) for trial in data)
        milestones = values.observations.milestones
        weight = milestones / (milestones + reports)
        return values.assuming(running).value_of_new(x) + weight * self._log_prior(params)

    def _log_prior(self, params: Sequence[Mapping[str, Any]]) -> Floats:
        """The logarithm of the prior's density, up to a constant, shape (len(params),)."""
        density = np.zeros(len(params))
        for key, (centre, spread) in self._prior.items():
            values = [trial.get(key) for trial in params]
            if all(is_number(value) and value is not None and value > 0 for value in values):
                decades = np.log10(np.array(values, dtype=np.float64) / centre)
                density -= 0.5 * (decades / spread) ** 2
        return density

    def _spread(self, space: Mapping[str, BaseDistribution], first: FrozenTrial | None, number: int) -> dict[str, Any]:
        """The next point of a low-discrepancy sequence, or a point close to it if the prior prefers that.

        The sequence is Roberts' additive recurrence by powers of the root g of g^(d+1) = g + 1 (the golden ratio for
        one coordinate). It starts at the first trial, which is drawn at random.

        Args:
            number: of the trial that is proposed.
        """
        root = 1.5
        for _ in range(50):
            root = (1.0 + root) ** (1.0 / (len(space) + 1))
        steps = root ** -np.arange(1, len(space) + 1)
        start = [_share(kind, first.params[key]) if first else 0.5 for key, kind in space.items()]
        at = (np.array(start) + (number - first.number if first else 0) * steps) % 1.0
        near = (at + (self._rng.random((8, len(space))) - 0.5) * 0.2).clip(0.0, 1.0 - 1e-9)
        near[0] = at
        params = [{key: _value(kind, row[k]) for k, (key, kind) in enumerate(space.items())} for row in near.tolist()]
        return params[int(np.argmax(self._log_prior(params)))]

    def _draw(self, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Uniformly random hyperparameters."""
        shares = self._rng.random(len(space)).tolist()
        return {key: _value(kind, share) for (key, kind), share in zip(space.items(), shares, strict=True)}


def _value(kind: BaseDistribution, share: float) -> Any:
    """The value at a share in [0, 1) of a distribution."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[int(share * len(kind.choices))]
    if not isinstance(kind, FloatDistribution | IntDistribution):
        raise TypeError(f"no value of {kind}")
    low, high = float(kind.low), float(kind.high)
    if isinstance(kind, IntDistribution):
        low, high = low - 0.5 + 1e-9, high + 0.5 - 1e-9
    if kind.log:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    if kind.step is not None and not kind.log:
        value = kind.low + round((value - kind.low) / kind.step) * kind.step
    value = min(max(value, kind.low), kind.high)
    return round(value) if isinstance(kind, IntDistribution) else value


def _share(kind: BaseDistribution, value: Any) -> float:
    """The share in [0, 1) of a distribution at which a value is."""
    if isinstance(kind, CategoricalDistribution):
        return (kind.choices.index(value) + 0.5) / len(kind.choices)
    return float(_axis("", kind).encode([value])[0, 0])


def _axis(key: str, kind: BaseDistribution) -> Axis:
    if isinstance(kind, CategoricalDistribution):
        return axis(key, kind.choices)
    assert isinstance(kind, FloatDistribution | IntDistribution)
    return axis(key, (kind.low, kind.high), log=kind.log)


def _trial_data(
    trial: FrozenTrial, space: Mapping[str, BaseDistribution], measure: Measure, milestones: int
) -> TrialData:
    variances: tuple[float, ...] = ()
    if measure.is_loss:
        losses = tuple(float(trial.intermediate_values[m]) for m in sorted(trial.intermediate_values))
    else:
        losses, variances = measure.read_values(trial.intermediate_values, milestones)
    complete = trial.state is TrialState.COMPLETE
    if complete and trial.value is not None and not losses:
        losses = (measure.loss_of(float(trial.value)),)
        variances = (known,) if (known := measure.variance(float(trial.value))) else ()
    params = {key: trial.params[key] for key in space if key in trial.params}
    return TrialData(trial.number, params, losses, (), trial.state is TrialState.RUNNING, complete, variances)


def _end(seen: Observations, trial: TrialData) -> float:
    """What complete trials are compared by: the last loss, or what the model takes it to be without noise."""
    return seen.end_of(trial) if seen.smooth else trial.losses[-1]


def _centre_and_spread(key: str, given: Any) -> tuple[float, float]:
    """The centre and the spread of a prior.

    Raises:
        ValueError: it has other keys, or one of the two is no positive number.
    """
    if not isinstance(given, Mapping) or set(given) != {"centre", "spread"}:
        raise ValueError(f"prior.{key}={given} must be a mapping with the two keys centre and spread")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"prior.{key}.{name}={value} must be a positive number")
    return float(given["centre"]), float(given["spread"])
