"""Our loop against `tune run lora_finetune_single_device` on the same YAML: the same numbers at every step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sweep.report.export import compare, run_tune, tune_run_line
from sweep.resources import embedded_dir
from tests.conftest import embedded_config
from tests.helpers.packs import TOLERANCE, alone, drive, make, worst
from tests.helpers.warm import warm_processes
from trainer.base import Cache
from trainer.contract import Step
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.recipe import LoraRecipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout and accumulation": {"model__lora_dropout": 0.1, "gradient_accumulation_steps": 3},
    "two epochs, a limit of steps, no clipping": {
        "epochs": 2,
        "max_steps_per_epoch": 3,
        "gradient_accumulation_steps": 2,
        "clip_grad_norm": None,
    },
    "micro-batches left over, explicit limit as in an export": {
        "epochs": 2,
        "gradient_accumulation_steps": 5,
        "max_steps_per_epoch": 2,
    },
    "activation checkpointing, another loss and optimizer": {
        "enable_activation_checkpointing": True,
        "loss__component": None,
        "optimizer___component_": "torch.optim.SGD",
        "optimizer__fused": False,
        "lr_scheduler__num_warmup_steps": 2,
    },
    "bf16": {"dtype": "bf16"},
}


DEEP = ("activation checkpointing, another loss and optimizer", "bf16")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.deep) if case in DEEP else case for case in CASES]
)
def test_same_numbers_as_tune_run(case: str, tmp_path: Path) -> None:
    changes = {key: value for key, value in CASES[case].items() if key != "loss__component"}
    if "loss__component" in CASES[case]:
        changes["loss"] = {"_component_": "torch.nn.CrossEntropyLoss"}
    config = embedded_config(**changes, output_dir=str(tmp_path / "out"))
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    with warm_processes():
        logged = run_tune(tune_run_line(path))
    cache = Cache()
    train(config, cache, tmp_path)  # the second trial of a worker must not differ from one alone
    recorded = train(config, cache, tmp_path)
    found = compare(recorded, logged, 1e-6)
    assert len(logged) == len(recorded) > 0
    assert found.ok, f"{case}: {found}"


def long_prompts(path: Path) -> dict[str, Any]:
    """Changes that train on rows of which every fifth has a prompt that leaves no room for its answer."""
    rows = [json.loads(line) for line in (embedded_dir() / "train.jsonl").read_text().splitlines()[:40]]
    for row in rows[::5]:
        row["instruction"] = " ".join([row["instruction"]] * 60)
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"dataset__data_files": str(path), "dataset__split": "train", "tokenizer__max_seq_len": 128}


def test_a_micro_batch_without_labels_weighs_nothing(tmp_path: Path) -> None:
    """torchtune logs NaN for its step and trains with the gradient of the others."""
    changes = long_prompts(tmp_path / "rows.jsonl")
    config = embedded_config(**changes, batch_size=1, gradient_accumulation_steps=8, output_dir=str(tmp_path / "out"))
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    with warm_processes():
        logged = run_tune(tune_run_line(path))
    assert any(math.isnan(metrics["loss"]) for metrics in logged.values())
    recorded = train(config, Cache(), tmp_path)
    assert all(math.isfinite(step.loss) and math.isfinite(step.grad_norm) for step in recorded)
    found = compare(recorded, logged, 1e-6)
    assert found.ok, found
    assert 0 < found.unlogged <= found.steps
    packed = alone(Cache(), tmp_path, {**changes, "batch_size": 1, "gradient_accumulation_steps": 8})
    assert [step.loss for step in packed] == [step.loss for step in recorded]
    pack, steps = Pack(), dict[Slot, list[Step]]()
    slot = pack.put(make(Cache(), tmp_path, {**changes, "batch_size": 1, "gradient_accumulation_steps": 8}))
    drive(pack, steps)
    assert worst(steps[slot], recorded) < TOLERANCE


def train(config: dict[str, Any], cache: Cache, scratch: Path) -> list[Step]:
    recipe = LoraRecipe(OmegaConf.create(config), cache, scratch / "scratch")
    return [batch.step for batch in recipe.train() if batch.step is not None]
