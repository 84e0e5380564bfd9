"""The same promises on one CUDA GPU: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sweep.report.export import compare, run_tune, tune_run_line
from tests.conftest import embedded_config
from tests.helpers.attempts import run, spec
from tests.helpers.cli import SMALL, status, sweep
from trainer import checkpoint
from trainer.base import Cache
from trainer.contract import FailureKind, OutcomeKind
from trainer.recipe import LoraRecipe
from trainer.room import Room, read_json

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA: dict[str, Any] = {"device": "cuda", "gradient_accumulation_steps": 2, "model__lora_dropout": 0.1}


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_same_numbers_as_tune_run(dtype: str, tolerance: float, tmp_path: Path) -> None:
    config = embedded_config(**CUDA, dtype=dtype)
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    logged = run_tune(tune_run_line(path))
    recipe = LoraRecipe(OmegaConf.create(config), Cache(), tmp_path / "scratch")
    recorded = [batch.step for batch in recipe.train() if batch.step]
    found = compare(recorded, logged, tolerance)
    print(dtype, found)
    assert found.ok, found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_within_an_accumulation(dtype: str, tmp_path: Path) -> None:
    config = OmegaConf.create(embedded_config(**CUDA, dtype=dtype))
    cache = Cache()
    reference = [b.step for b in LoraRecipe(config, cache, tmp_path / "s").train() if b.step]
    first = LoraRecipe(config, cache, tmp_path / "s")
    steps = []
    for batch in first.train():
        steps += [batch.step] if batch.step else []
        if batch.position == 5:
            break
    checkpoint.save(tmp_path / "c.pt", {"recipe": first.state(), "milestones": {}, "guard": {}})
    second = LoraRecipe(config, cache, tmp_path / "s")
    second.load_state(checkpoint.load(tmp_path / "c.pt")["recipe"])
    steps += [b.step for b in second.train() if b.step]
    assert [step.step for step in steps] == [step.step for step in reference]
    worst = max(abs(a.loss - b.loss) / b.loss for a, b in zip(steps, reference, strict=True))
    print(dtype, "largest relative difference after a resume", worst)
    assert worst <= (1e-5 if dtype == "fp32" else 2e-2)


def test_a_real_out_of_memory_fails_the_trial_and_the_next_one_trains(tmp_path: Path) -> None:
    cache = Cache()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)  # a few megabytes: less than one block of the allocator
    try:
        outcome = run(Room(tmp_path / "a"), cache, spec(device="cuda", batch_size=48))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(outcome)
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, FailureKind.OUT_OF_MEMORY)
    assert run(Room(tmp_path / "b"), cache, spec(device="cuda")).kind is OutcomeKind.COMPLETED


def test_a_sweep_on_the_gpu(rooms: Path) -> None:
    sweep("run", *SMALL, "name=g", "recipe.overrides.device=cuda", "recipe.overrides.dtype=bf16")
    found = status("g")
    assert all(row["state"] in ("complete", "pruned") for row in found["rows"])
    assert all(report["memory_gib"] > 0 for row in found["rows"] for report in row["reports"])
    workers = Room(rooms / "g").workers()
    assert len(workers) == len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
    assert read_json(Room(rooms / "g").worker(workers[0]).job)["place"] == 0
    print(sweep("export", "g", "--verify", code=None).stdout)
