"""A small table of made-up learning curves, in the format of `sweep.queues.simulated.tables`."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

RANKS = (4, 8, 16, 32, 64)
RATES = tuple(float(rate) for rate in np.logspace(-5, -1, 9))
ACCUMULATIONS = (1, 2, 4, 8)


def write_table(path: Path, milestones: int = 8, seeds: int = 2, validation: bool = True) -> Path:
    """A full grid. The best rate is 1e-3 times the accumulation's root, large rates lead early and then stand still."""
    rows = list(product(RANKS, RATES, ACCUMULATIONS, range(seeds)))
    rank, rate, accumulation, seed = (np.array(column) for column in zip(*rows, strict=True))
    at = np.arange(1, milestones + 1) / milestones
    off = np.log10(rate) + 3 - 0.5 * np.log10(accumulation)
    floor = 1.0 + 0.4 * np.abs(off) ** 1.5 - 0.02 * np.log2(rank)
    speed = 1.0 + 1.5 * np.clip(off, -2, 2)[:, None]
    noise = np.random.default_rng(7).standard_normal((len(rows), milestones)) * 0.005 * (1 + seed[:, None])
    loss = floor[:, None] + 2.5 * np.exp(-np.maximum(0.4, 3 + speed) * at) + noise
    curves = {"train_loss": loss + 0.05, "grad_norm": 0.5 + np.exp(off)[:, None] * (1.2 - at)}
    if validation:
        curves["val_loss"] = loss
    tokens = np.broadcast_to(1000.0 * np.arange(1, milestones + 1), loss.shape)
    np.savez(path, rank=rank, lr=rate, accumulation=accumulation, seed=seed, tokens=tokens, **curves)
    return path
