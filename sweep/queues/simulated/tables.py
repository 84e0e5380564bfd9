"""Recorded learning curves: a full grid of hyperparameters, with the reports of each trial.

The format is a `.npz` file (docs/simulated.md) with one row for each trial. One-dimensional arrays of numbers are
hyperparameters; `seed` distinguishes rows of equal hyperparameters. Arrays of shape (trials, milestones) are `tokens`
(label tokens seen, summed), `train_loss` and `grad_norm` (means since the last milestone), and `val_loss` if there is
validation. Any other array of that shape is a metric by its name; NaN: it was not measured there.

Invariants: every combination of the grid's values has a row for every seed. A choice that the grid lacks is refused
with its key; a number within an interval is read at the nearest point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.config.space import Choice, Domain, Space
from sweep.errors import ConfigError

CURVES = ("tokens", "train_loss", "grad_norm", "val_loss", "optimizer_steps")
NEEDED = ("tokens", "train_loss", "grad_norm")
# The torchtune keys of the columns whose names are known.
COLUMNS = {"rank": "model.lora_rank", "lr": "optimizer.lr", "accumulation": "gradient_accumulation_steps"}
SEED = "seed"


@dataclass(frozen=True)
class Table:
    """A recorded grid.

    Args:
        grid: ascending values by torchtune key.
        seeds: ascending; `(0,)` if the file has none.
        rows: the row by the indices of the grid's values, in the order of the keys, followed by that of the seed.
        curves: arrays by name, float64, of shape (rows, milestones).
        ends: by row, how many milestones were recorded, for rows that have not all of them.
    """

    path: str
    grid: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    rows: Mapping[tuple[int, ...], int]
    curves: Mapping[str, NDArray[np.float64]]
    ends: Mapping[int, int] = field(default_factory=dict)

    @property
    def milestones(self) -> int:
        return int(self.curves["tokens"].shape[1])

    @property
    def trial_tokens(self) -> int:
        """Label tokens of a whole trial; the median, since accumulation may drop a few rows of the data."""
        return int(np.median(self.curves["tokens"][:, -1]))

    @property
    def has_validation(self) -> bool:
        return "val_loss" in self.curves

    @cached_property
    def _scales(self) -> dict[str, tuple[bool, NDArray[np.float64]]]:
        scales = {}
        for key, values in self.grid.items():
            log = _is_geometric(values)
            scales[key] = log, np.log(values) if log else np.asarray(values, dtype=float)
        return scales

    def check(self, space: Space, base: Mapping[str, Any]) -> None:
        """Refuse a space or a configuration with values that the grid lacks.

        Args:
            base: values of the torchtune configuration by dotted key, for columns that do not vary.

        Raises:
            ConfigError: with the key, the value and what the table has.
        """
        for parameter in space:
            if parameter.key not in self.grid:
                raise ConfigError(
                    f"space.{parameter.key}: the table {self.path} holds no such column; its keys are "
                    f"{', '.join(self.grid)}"
                )
            self._check_domain(parameter.key, parameter.domain)
        for key, values in self.grid.items():
            if key not in space and base.get(key) not in values:
                raise ConfigError(
                    f"{key}={base.get(key)} is not in the table {self.path}, which holds {_listed(values)}; "
                    "set it by recipe.overrides, or let it vary"
                )

    def row(self, params: Mapping[str, Any], seed: int) -> int:
        """The row of a trial; a parameter between two points of the grid is read at the nearer one.

        Args:
            params: a value for every key of the grid.
            seed: any number; it is taken modulo the number of the table's seeds.
        """
        at = []
        for key in self.grid:
            log, scale = self._scales[key]
            value = float(params[key])
            at.append(int(np.abs(scale - (math.log(value) if log else value)).argmin()))
        return self.rows[(*at, seed % len(self.seeds))]

    def _check_domain(self, key: str, domain: Domain) -> None:
        values = self.grid[key]
        if isinstance(domain, Choice):
            for value in domain.values:
                if not any(_same(value, known) for known in values):
                    raise ConfigError(f"space.{key}: {value} is not in the table {self.path}: {_listed(values)}")
            return
        for end in (domain.low, domain.high):
            if not (values[0] * (1 - 1e-6) <= end <= values[-1] * (1 + 1e-6)):
                raise ConfigError(
                    f"space.{key}: {end:g} is outside the table {self.path}: {values[0]:g} to {values[-1]:g}"
                )


def load_table(path: str, columns: Mapping[str, str] = {}) -> Table:
    """Read a table from its file.

    Args:
        columns: torchtune keys by array, in addition to `COLUMNS`; any other array's key is its own name.

    Raises:
        ConfigError: there is no such file, or it is not a full grid of curves.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            raw = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"queue.table={path} cannot be read as a .npz file of curves: {error}") from error
    arrays = {name: array.astype(float) for name, array in raw.items() if array.ndim and array.dtype.kind in "biuf"}
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ConfigError(f"queue.table={path} lacks {', '.join(missing)}; it has {', '.join(arrays)}")
    shape = arrays["tokens"].shape
    metrics = [name for name, array in arrays.items() if len(shape) == 2 and array.shape == shape]
    curves = {name: arrays.pop(name) for name in dict.fromkeys((*CURVES, *metrics)) if name in arrays}
    if len(shape) != 2 or any(curve.shape != shape for curve in curves.values()):
        raise ConfigError(f"queue.table={path}: the curves must all have the shape (trials, milestones) of tokens")
    if any(array.shape != shape[:1] for array in arrays.values()):
        raise ConfigError(f"queue.table={path}: every hyperparameter must be an array of {shape[0]} trials")
    seeds = arrays.pop(SEED, np.zeros(shape[0]))
    keys = {**COLUMNS, **columns}
    names = {keys.get(name, name): array for name, array in arrays.items()}
    return _gridded(str(path), names, seeds, curves)


def _gridded(
    path: str, names: Mapping[str, NDArray[Any]], seeds: NDArray[Any], curves: Mapping[str, NDArray[Any]]
) -> Table:
    grid = {key: tuple(float(v) for v in np.unique(array)) for key, array in names.items()}
    kinds = tuple(int(seed) for seed in np.unique(seeds))
    places = [np.searchsorted(grid[key], array) for key, array in names.items()]
    places.append(np.searchsorted(kinds, seeds))
    rows = {tuple(int(i) for i in at): row for row, at in enumerate(zip(*places, strict=True))}
    for at in product(*(range(len(values)) for values in grid.values()), range(len(kinds))):
        if at not in rows:
            point = ", ".join(f"{key}={grid[key][i]:g}" for key, i in zip(grid, at, strict=False))
            raise ConfigError(f"queue.table={path} is not a full grid: it lacks {point}, seed {kinds[at[-1]]}")
    return Table(path, grid, kinds, rows, curves)


def _is_geometric(values: tuple[float, ...]) -> bool:
    """Whether a grid is spaced in the logarithm rather than evenly."""
    return values[0] > 0 and values[-1] / values[0] >= 4


def _same(value: Any, known: float) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isclose(value, known, rel_tol=1e-6)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
