"""An Optuna sampler that learns from partial curves: it proposes what promises most by `strategy.forecast`.

Invariants: a proposal is a function of the study's trials, the trial's number and the seed. Trials that run count by
their reports and are taken to end as forecast, so that workers do not all try the same. A parameter that only some
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

from sweep.search.optuna_private import visible_trials
from sweep.search.strategy.encoding import Axis, Floats, axis, encode, gaps, is_number
from sweep.search.strategy.forecast import Forecast, forecast
from sweep.search.strategy.observations import Known

BESIDE = 0.35  # of a coordinate: how far from the best still is beside it
UNMOVED = 4  # complete trials that brought nothing, after which what lies beside the best is tried in turn
KNOWN = (TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)


class ForecastSampler(optuna.samplers.BaseSampler):
    """Proposes the configuration whose end, as forecast, promises the greatest improvement.

    Args:
        milestones: reports of a trial that runs to its end; null: as many as any trial has made.
        design: trials that are spread over the space before the forecast proposes any.
        candidates: configurations among which each proposal is the most promising.
        prior: what is believed beforehand, by parameter: `centre` and `spread`, the standard deviation in decades. It
            weighs as much as one complete trial does: its weight falls with the number of reports (Hvarfner et al.,
            πBO, 2022).
    """

    def __init__(
        self,
        milestones: int | None = None,
        design: int = 6,
        candidates: int = 192,
        prior: Mapping[str, Mapping[str, float]] | None = None,
        seed: int | None = None,
    ) -> None:
        if design < 2 or candidates < 1:
            raise ValueError("design must be at least 2, and candidates at least 1")
        self._milestones, self._design, self._candidates = milestones, design, candidates
        self._prior = {key: (float(one["centre"]), float(one["spread"])) for key, one in (prior or {}).items()}
        if any(centre <= 0 or spread <= 0 for centre, spread in self._prior.values()):
            raise ValueError("a prior's centre and spread must be positive")
        self._rng = np.random.default_rng(seed)
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that every trial has, with the same distribution."""
        others = [t for t in visible_trials(study, KNOWN) if t.number != trial.number and t.params]
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
        trials = [t for t in visible_trials(study, KNOWN) if t.number != trial.number and t.params]
        axes = tuple(_axis(key, one) for key, one in search_space.items())
        known = [_known(one, search_space) for one in trials]
        milestones = self._milestones or max((len(one.losses) for one in known), default=1) or 1
        seen = forecast(known, axes, milestones) if len(trials) >= self._design else None
        if seen is None:
            return self._spread(search_space, trials[0] if trials else None, trial.number)
        params = [self._draw(search_space) for _ in range(self._candidates)]
        x = encode(axes, params)
        if trial.number % 2 and seen.stale:
            params = self._beside(axes, known, params, seen, trial.number // 2) or params
            x = encode(axes, params)
        value = self._promise(seen, known, x, params)
        return params[int(np.argmax(value))]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _beside(
        self,
        axes: tuple[Axis, ...],
        known: Sequence[Known],
        params: Sequence[dict[str, Any]],
        seen: Forecast,
        turn: int,
    ) -> list[dict[str, Any]]:
        """Configurations that differ from a best complete trial in one parameter, and from every trial noticeably.

        While complete trials bring nothing, each second proposal is one of these, so that a forecast that is wrong
        about what lies next to the best is found out. After `UNMOVED` such trials the parameters have their turns,
        whatever the forecast says of them: else the one that it trusts most would be tried over and over.
        """
        best = sorted((one for one in known if one.complete), key=lambda one: one.losses[-1])[: seen.centres]
        bases = [best[n % len(best)].params for n in range(len(params))]
        have, centre = encode(axes, [one.params for one in known]), encode(axes, bases)
        for later in range(len(axes)):
            turns = [turn + later if seen.stale > UNMOVED else n // len(best) for n in range(len(params))]
            varied = [axes[at % len(axes)] for at in turns]
            found = [{**base, one.key: new[one.key]} for base, one, new in zip(bases, varied, params, strict=True)]
            x = encode(axes, found)
            near = (np.abs(x - centre).max(axis=1) <= BESIDE) | np.array([bool(one.words) for one in varied])
            kept = near & (gaps(x, have).min(axis=1) > 0.6 * seen.apart)
            if kept.any():
                return [one for one, fine in zip(found, kept, strict=True) if fine]
        return []

    def _promise(self, seen: Forecast, known: Sequence[Known], x: Floats, params: Sequence[dict[str, Any]]) -> Floats:
        running = [one for one in known if one.running]
        reports = sum(len(one.losses) for one in known)
        left = np.full(len(x), float(seen.milestones))
        weight = seen.milestones / (seen.milestones + reports)
        return seen.assuming(running).promise(seen.new(x), left) + weight * self._log_prior(params)

    def _log_prior(self, params: Sequence[Mapping[str, Any]]) -> Floats:
        found = np.zeros(len(params))
        for key, (centre, spread) in self._prior.items():
            values = [one.get(key) for one in params]
            if all(is_number(value) and value is not None and value > 0 for value in values):
                decades = np.log10(np.array(values, dtype=np.float64) / centre)
                found -= 0.5 * (decades / spread) ** 2
        return found

    def _spread(self, space: Mapping[str, BaseDistribution], first: FrozenTrial | None, number: int) -> dict[str, Any]:
        """The point of a low-discrepancy sequence, of several points close by the one that the prior likes best.

        The sequence is Roberts' additive recurrence by powers of the root g of g^(d+1) = g + 1 (the golden ratio for
        one coordinate), which starts at the first trial; that one is drawn at random.
        """
        root = 1.5
        for _ in range(50):
            root = (1.0 + root) ** (1.0 / (len(space) + 1))
        steps = root ** -np.arange(1, len(space) + 1)
        start = [_share(one, first.params[key]) if first else 0.5 for key, one in space.items()]
        at = (np.array(start) + (number - first.number if first else 0) * steps) % 1.0
        near = (at + (self._rng.random((8, len(space))) - 0.5) * 0.2).clip(0.0, 1.0 - 1e-9)
        near[0] = at
        params = [{key: _value(one, row[k]) for k, (key, one) in enumerate(space.items())} for row in near.tolist()]
        return params[int(np.argmax(self._log_prior(params)))]

    def _draw(self, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        shares = self._rng.random(len(space)).tolist()
        return {key: _value(one, at) for (key, one), at in zip(space.items(), shares, strict=True)}


def _value(one: BaseDistribution, at: float) -> Any:
    """The value at a share `at` in [0, 1) of a distribution."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[int(at * len(one.choices))]
    if not isinstance(one, FloatDistribution | IntDistribution):
        raise TypeError(f"no value of {one}")
    low, high = float(one.low), float(one.high)
    if isinstance(one, IntDistribution):
        low, high = low - 0.5 + 1e-9, high + 0.5 - 1e-9
    found = math.exp(math.log(low) + at * (math.log(high) - math.log(low))) if one.log else low + at * (high - low)
    if one.step is not None and not one.log:
        found = one.low + round((found - one.low) / one.step) * one.step
    found = min(max(found, one.low), one.high)
    return round(found) if isinstance(one, IntDistribution) else found


def _share(one: BaseDistribution, value: Any) -> float:
    """Where in [0, 1) of a distribution a value stands."""
    if isinstance(one, CategoricalDistribution):
        return (one.choices.index(value) + 0.5) / len(one.choices)
    return float(_axis("", one).encode([value])[0, 0])


def _axis(key: str, one: BaseDistribution) -> Axis:
    if isinstance(one, CategoricalDistribution):
        return axis(key, one.choices)
    assert isinstance(one, FloatDistribution | IntDistribution)
    return axis(key, (one.low, one.high), log=one.log)


def _known(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Known:
    losses = tuple(float(trial.intermediate_values[m]) for m in sorted(trial.intermediate_values))
    complete = trial.state is TrialState.COMPLETE
    if complete and trial.value is not None and not losses:
        losses = (float(trial.value),)
    params = {key: trial.params[key] for key in space if key in trial.params}
    return Known(trial.number, params, losses, (), trial.state is TrialState.RUNNING, complete)
