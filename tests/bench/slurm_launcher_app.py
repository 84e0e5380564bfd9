"""The launcher's arm: `LAUNCHER_PYTHON tests/bench/slurm_launcher_app.py --multirun …`, started by `slurm_launcher.py`.

A Hydra application as a person would write it for hydra-submitit-launcher: a job trains one configuration through
torchtune's own recipe `lora_finetune_single_device`, whose file is loaded by its path, since torchtune forbids to
import the package that it lies in. `task` is a JSON file of resolved configurations, `number` the one to train.

Invariants: needs hydra-core and torchtune only, nothing of `sweep` or `trainer`. Says when it was where, in a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

RECIPE = "lora_finetune_single_device"


@hydra.main(version_base="1.3", config_path=None)
def train(cfg: DictConfig) -> None:
    times = {"process": process_start(), "called": time.time()}
    task, number = json.loads(Path(cfg.task).read_text()), int(cfg.number)
    out = Path(task["out"])
    config: Any = OmegaConf.create(task["configs"][number])
    config.output_dir = config.checkpointer.output_dir = str(out / "adapters" / str(number))
    config.metric_logger.log_dir = str(out / "logs" / str(number))
    recipe_class = load_recipe()
    times["imported"] = time.time()
    recipe = recipe_class(cfg=config)
    recipe.setup(cfg=config)
    times |= {"set_up": time.time(), "cpu_before_training": time.process_time()}
    recipe.train()
    recipe.cleanup()
    times |= {"trained": time.time(), "cpu": time.process_time()}
    (out / f"{number}.json").write_text(json.dumps(times))


def load_recipe() -> Any:
    """The class of torchtune's recipe."""
    import torchtune

    path = Path(str(torchtune.__file__)).parents[1] / "recipes" / f"{RECIPE}.py"
    spec = importlib.util.spec_from_file_location(f"torchtune_{RECIPE}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LoRAFinetuneRecipeSingleDevice


def process_start() -> float:
    """When the kernel started this process, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    train()
