"""Translates a search space to Optuna: distributions, suggestions, stored values and grids.

Invariants: no study is changed. A value that is encoded, stored, read and decoded is the same value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial

from sweep.config.space import Choice, Domain, Interval, Space, label
from sweep.errors import ConfigError

# Optuna's GridSampler holds all cells in memory, and a sweep that trains more trials does not exist.
MAX_CELLS = 100_000
# Types that Optuna stores as a choice unchanged. Any other choice is stored as its text.
PRIMITIVE = (str, int, float, bool, type(None))


def suggest(trial: optuna.Trial, key: str, domain: Domain) -> Any:
    """The value of a trial for a parameter; the value that it already has, if any."""
    match domain:
        case Choice(values):
            stored = _stored(values)
            return values[stored.index(trial.suggest_categorical(key, stored))]
        case Interval(low, high, log, step, integer) if integer:
            return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=log)
        case Interval(low, high, log, step, _):
            return trial.suggest_float(key, low, high, step=step, log=log)


def distribution(domain: Domain) -> BaseDistribution:
    """The Optuna distribution of a domain."""
    match domain:
        case Choice(values):
            return CategoricalDistribution(_stored(values))
        case Interval(low, high, log, step, integer) if integer:
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        case Interval(low, high, log, step, _):
            return FloatDistribution(low, high, log=log, step=step)


def encode(domain: Domain, value: Any) -> Any:
    """What Optuna stores for a value: the value, or its text if any choice is not a plain value."""
    return label(value) if isinstance(domain, Choice) and not _is_plain(domain.values) else value


def _stored(values: Sequence[Any]) -> list[Any]:
    """What Optuna stores for each value of a choice; see `encode`."""
    return list(values) if _is_plain(values) else [label(value) for value in values]


def _is_plain(values: Sequence[Any]) -> bool:
    return all(isinstance(value, PRIMITIVE) for value in values)


def decode_params(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """The hyperparameters of a stored trial as the torchtune configuration takes them."""
    params: dict[str, Any] = {}
    for key, stored in trial.params.items():
        domain = space[key].domain if key in space else None
        params[key] = stored
        if isinstance(domain, Choice):
            values = domain.values
            params[key] = next((v for v, own in zip(values, _stored(values), strict=True) if own == stored), stored)
    return params


def grid_of(space: Space) -> dict[str, list[Any]]:
    """The grid of Optuna's GridSampler: the values of each parameter.

    Raises:
        ConfigError: a parameter has no finite set of values, or is conditional; or the grid has over `MAX_CELLS` cells.
    """
    grid: dict[str, list[Any]] = {}
    for parameter in space:
        domain, cells = parameter.domain, math.prod(map(len, grid.values()))
        if parameter.when:
            raise ConfigError(f"sampler=grid cannot walk {parameter.key}, which exists only sometimes; use another")
        if isinstance(domain, Choice):
            _check_cells(parameter.key, len(domain.values), cells)
            grid[parameter.key] = _stored(domain.values)
        elif domain.step is not None or domain.integer:
            step = domain.step or 1
            count = int((domain.high - domain.low) / step + 1e-9) + 1
            _check_cells(parameter.key, count, cells)
            numbers = [domain.low + i * step for i in range(count)]
            grid[parameter.key] = [int(n) if domain.integer else n for n in numbers]
        else:
            raise ConfigError(
                f"sampler=grid cannot walk {parameter.key}={domain}; "
                "write choice(…) or range(…), or use another sampler"
            )
    return grid


def _check_cells(key: str, values: int, cells: int) -> None:
    if values * cells > MAX_CELLS:
        raise ConfigError(
            f"sampler=grid cannot walk {key} with {values:,} values: the grid would have {values * cells:,} cells, at "
            f"most {MAX_CELLS:,} are allowed; use fewer values, or another sampler"
        )


def same_space(study: optuna.Study, space: Space) -> bool:
    """Whether every stored trial of a study could have been proposed in this space."""
    own = {parameter.key: distribution_to_json(distribution(parameter.domain)) for parameter in space}
    return all(
        own.get(key) == distribution_to_json(dist)
        for trial in study.get_trials(deepcopy=False)
        for key, dist in trial.distributions.items()
    )
