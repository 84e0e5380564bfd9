"""A pack on one CUDA GPU against its trials alone: `pytest -m gpu tests/gpu/test_packed.py -s`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.test_packed import TRIALS, Change, alone, drive, make, worst
from trainer.base import Cache
from trainer.contract import Step
from trainer.packed import Pack
from trainer.packed_slot import Slot

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_gpu(change: Change, dtype: str, **more: Any) -> Change:
    return {**change, "device": "cuda", "dtype": dtype, **more}


def packed(cache: Cache, scratch: Path, changes: list[Change]) -> list[list[Step]]:
    """Steps of each trial, all in one pack; they start one pass after another."""
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    slots = []
    for change in changes:
        slots.append(pack.put(make(cache, scratch, change)))
        drive(pack, steps, 1)
    drive(pack, steps)
    return [steps[slot] for slot in slots]


def test_fp32_has_the_numbers_of_each_alone(tmp_path: Path) -> None:
    cache = Cache()
    changes = [on_gpu(change, "fp32") for change in TRIALS]
    found = packed(cache, tmp_path, changes)
    differences = [worst(ours, alone(cache, tmp_path, change)) for ours, change in zip(found, changes, strict=True)]
    print("largest relative difference of each trial", differences)
    assert max(differences) < 1e-5


def test_bf16_drifts_less_than_seeds_do(tmp_path: Path) -> None:
    """The last losses of eight trials, packed and alone, against the spread of one trial over eight seeds."""
    cache = Cache()
    changes = [on_gpu(TRIALS[index % len(TRIALS)], "bf16", seed=index) for index in range(8)]
    ours = packed(cache, tmp_path, changes)
    theirs = [alone(cache, tmp_path, change) for change in changes]
    drift = [abs(a[-1].loss - b[-1].loss) for a, b in zip(ours, theirs, strict=True)]
    seeds = [alone(cache, tmp_path, on_gpu(TRIALS[0], "bf16", seed=seed))[-1].loss for seed in range(8)]
    print("drift", drift, "spread of seeds", statistics.stdev(seeds))
    assert statistics.mean(drift) < statistics.stdev(seeds)
