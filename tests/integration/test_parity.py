"""Our loop against `tune run lora_finetune_single_device` on the same YAML: the same numbers at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sweep.report.export import compare, read_tune_log, run_tune
from tests.conftest import embedded_config
from tests.helpers.warm import warm_processes
from trainer.base import Cache
from trainer.contract import Step
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
    config = embedded_config(**changes)
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    with warm_processes():
        run_tune(path, tmp_path, clip_is_set=config["clip_grad_norm"] is not None)
    logged = read_tune_log(tmp_path / "logs")
    cache = Cache()
    train(config, cache, tmp_path)  # the second trial of a worker must not differ from one alone
    recorded = train(config, cache, tmp_path)
    found = compare(recorded, logged, 1e-6)
    assert len(logged) == len(recorded) > 0
    assert found.ok, f"{case}: {found}"


def train(config: dict[str, Any], cache: Cache, scratch: Path) -> list[Step]:
    recipe = LoraRecipe(OmegaConf.create(config), cache, scratch / "scratch")
    return [batch.step for batch in recipe.train() if batch.step is not None]
