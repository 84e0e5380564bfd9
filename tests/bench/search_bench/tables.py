"""Tables of learning curves to search on: recorded ones, and a parametric family of our own.

Invariants: a table is a full grid of rank × learning rate × accumulation × seed; a continuous learning rate gets the
nearest recorded one in log(lr); which of the table's seeds a trial gets is the caller's draw. The oracle is the
smallest final validation loss of a configuration, averaged over the table's seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RANK, LR, ACCUMULATION = "model.lora_rank", "optimizer.lr", "gradient_accumulation_steps"
MILESTONES = 24


@dataclass(frozen=True)
class Table:
    """A grid of curves.

    Args:
        val_loss, train_loss, grad_norm, tokens: shape (ranks, rates, accumulations, seeds, milestones).
    """

    name: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    accumulations: tuple[int, ...]
    val_loss: Floats
    train_loss: Floats
    grad_norm: Floats
    tokens: Floats

    @property
    def seeds(self) -> int:
        return int(self.val_loss.shape[3])

    @property
    def milestones(self) -> int:
        return int(self.val_loss.shape[4])

    @property
    def oracle(self) -> float:
        return float(self.val_loss[..., -1].mean(axis=3).min())

    def cell(self, params: Mapping[str, Any], seed: int) -> tuple[int, int, int, int]:
        """Where a configuration's curve lies, by the table's seed `seed`."""
        rate = int(np.abs(np.log(self.rates) - np.log(float(params[LR]))).argmin())
        rank, accumulation = self.ranks.index(int(params[RANK])), self.accumulations.index(int(params[ACCUMULATION]))
        return rank, rate, accumulation, seed

    @property
    def space(self) -> dict[str, Any]:
        """The space as the peers' adapters are told it: choices, and the rate's bounds."""
        return {RANK: list(self.ranks), LR: [self.rates[0], self.rates[-1]], ACCUMULATION: list(self.accumulations)}


def load(path: Path) -> Table:
    """A recorded table (see the README beside the recordings)."""
    data = np.load(path)
    ranks, rates, accumulations, seeds = (np.unique(data[k]) for k in ("rank", "lr", "accumulation", "seed"))
    at = (
        np.searchsorted(ranks, data["rank"]),
        np.abs(np.log(data["lr"])[:, None] - np.log(rates)[None]).argmin(axis=1),
        np.searchsorted(accumulations, data["accumulation"]),
        np.searchsorted(seeds, data["seed"]),
    )
    shape = (len(ranks), len(rates), len(accumulations), len(seeds), data["val_loss"].shape[1])
    grids = {}
    for key in ("val_loss", "train_loss", "grad_norm", "tokens"):
        grids[key] = np.full(shape, np.nan)
        grids[key][at] = data[key]
        if np.isnan(grids[key]).any():
            raise ValueError(f"{path}: {key} is no full grid")
    return Table(path.stem, tuple(map(int, ranks)), tuple(map(float, rates)), tuple(map(int, accumulations)), **grids)


def synthetic(seed: int, noise: float = 0.01) -> Table:
    """A table of a parametric family, drawn by a seed: no recording is fitted.

    Loss falls as a power of the training done, which a larger step speeds up and a decaying schedule completes; too
    large a step diverges. What is drawn: the best rate, how it moves with rank and accumulation, which ranks are
    better and whether large ones overfit, how soon divergence follows the best rate, and how far high rates lag
    behind before the schedule has decayed (curves cross).
    """
    rng = np.random.default_rng([7, seed])
    ranks, accumulations = (2, 4, 8, 16, 32, 64), (1, 2, 4, 8)
    rates = np.logspace(-4.5, -0.75, 12)
    r, log_rate, a = np.meshgrid(np.log2(ranks), np.log(rates), np.log2(accumulations), indexing="ij")
    best = rng.uniform(-8.0, -4.0) + rng.uniform(-0.35, 0.05) * (r - 3.5) + rng.uniform(0.0, 0.5) * (a - 1.5)
    off = log_rate - best
    floor = rng.uniform(0.6, 2.0)
    gain = rng.uniform(0.03, 0.12) * (rng.uniform(3.0, 7.0) - r) ** 2 / 6.0 + rng.uniform(-0.01, 0.04) * a
    width_low, width_high = rng.uniform(0.02, 0.12), rng.uniform(0.08, 0.3)
    final = floor + gain + np.where(off < 0, width_low, width_high) * off**2
    cliff = rng.uniform(1.0, 2.5)
    diverged = off > cliff + 0.3 * rng.standard_normal(off.shape)
    start, lag, power = rng.uniform(3.0, 5.0), rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.2)
    time = np.arange(1, MILESTONES + 1) / MILESTONES
    shape = (*off.shape, 2, MILESTONES)
    speed = np.exp(np.clip(off, -4.0, 2.0))[..., None]
    falling = (start - final[..., None]) * (1.0 + 12.0 * speed * time) ** -power
    falling *= (1.0 + np.cos(np.pi * time)) / 2.0 * 0.6 + 0.4 * (1.0 - time)
    anneal = lag * np.exp(np.clip(off, -3.0, 1.5))[..., None] * (1.0 + np.cos(np.pi * time)) / 2.0
    curve = final[..., None] + falling + 0.3 * anneal
    curve = np.where(diverged[..., None], start + 2.0 - 0.5 * rng.random(off.shape)[..., None], curve)
    jitter = 1.0 + noise * (1.05 - time) * rng.standard_normal(shape) + 0.002 * rng.standard_normal((*off.shape, 2, 1))
    val = curve[..., None, :] * jitter
    slope = np.maximum(falling + 0.3 * anneal, 1e-3)
    norm = np.where(diverged[..., None], 0.3, 0.4 + np.sqrt(slope / speed)) * np.exp(-0.1 * a[..., None])
    grad = norm[..., None, :] * np.exp(0.1 * rng.standard_normal(shape))
    train = val - 0.02 * time + noise * rng.standard_normal(shape)
    tokens = np.broadcast_to(9600.0 * np.arange(1, MILESTONES + 1), shape).copy()
    return Table(f"synthetic-{seed}", ranks, tuple(map(float, rates)), accumulations, val, train, grad, tokens)
