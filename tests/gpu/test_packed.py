"""A pack on one CUDA GPU against its trials alone: `pytest -m gpu tests/gpu/test_packed.py -s`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.packed_parity import compiled
from tests.helpers.packs import TRIALS, Change, alone, drive, make, worst
from tests.helpers.schedulers import Hands
from trainer.base import Cache
from trainer.contract import FailureKind, OutcomeKind, Step
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.room import Room

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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_is_compiled_when_trials_come_and_go(dtype: str, tmp_path: Path) -> None:
    """Trials of one position, then one of another, of a larger rank, with dropout, and validation in between."""
    cache, pack = Cache(), Pack()
    first = pack.put(make(cache, tmp_path, on_gpu({}, dtype, model__lora_rank=4, seed=0)))
    before = compiled()
    pack.put(make(cache, tmp_path, on_gpu({}, dtype, model__lora_rank=4, seed=1)))
    pack.step()
    pack.remove(first)
    for rank in (8, 64):
        slot = pack.put(make(cache, tmp_path, on_gpu(TRIALS[2], dtype, model__lora_rank=rank)))
        assert all(result.error is None for result in pack.step())
        slot.recipe.evaluate()
    pack.remove(pack.slots[0])
    pack.step()
    assert len(before) > 8
    assert compiled() - before == set()


def test_a_real_out_of_memory_halves_the_passes_and_loses_no_trial(tmp_path: Path) -> None:
    """Eight trials whose common pass takes more than this process may have."""
    cache = Cache()
    shape: Change = {"batch_size": 32, "dataset__split": "train[:256]", "gradient_accumulation_steps": 2}
    changes = [on_gpu(shape, "fp32", seed=seed, optimizer__lr=1e-3, model__lora_rank=8) for seed in range(8)]
    pack = Pack()
    for change in changes:
        pack.put(make(cache, tmp_path, change))
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    pack.step()
    most = torch.cuda.max_memory_reserved()
    del pack
    pack = Pack()
    slots = [pack.put(make(cache, tmp_path, change)) for change in changes]
    steps: dict[Slot, list[Step]] = {}
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((held + 0.4 * (most - held)) / total)
    try:
        drive(pack, steps)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(f"{held / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB without a limit; tokens of a pass: {pack.budget}")
    assert pack.budget is not None
    differences = [worst(steps[slot], alone(cache, tmp_path, one)) for slot, one in zip(slots, changes, strict=True)]
    print("largest relative difference of each trial", differences)
    assert max(differences) < 1e-5


def test_what_can_never_fit_is_refused_and_the_others_train(tmp_path: Path) -> None:
    hands = Hands(Room(tmp_path), Cache(), 4)
    small: Change = {"device": "cuda", "dtype": "fp32"}
    hands.give(0, **small)
    hands.scheduler.step()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.mem_get_info()[1])
    try:
        hands.give(1, **small, batch_size=512, dataset__split="train[:512]")
        hands.give(2, **small)
        hands.scheduler.step()
        assert list(hands.ended) == [1]
        hands.finish()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(hands.ended[1].reason)
    assert (hands.ended[1].kind, hands.ended[1].failure) == (OutcomeKind.FAILED, FailureKind.OUT_OF_MEMORY)
    assert {hands.ended[trial].kind for trial in (0, 2)} == {OutcomeKind.COMPLETED}
