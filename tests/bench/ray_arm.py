"""Ray's arm: `RAY_PYTHON tests/bench/ray_arm.py TASK.json`, started by `dispatch.py` and `gpu_dispatch.py`.

The very trainer of the warm queue (`trainer.recipe.LoraRecipe`, with a `trainer.base.Cache` that the actor keeps)
under Ray Tune: ASHA, `reuse_actors=True`, loggers, callbacks and checkpoints off, a result at every milestone. The
driver imports no torch. Ray is treated well: its actors read their configuration from a file, so that it has to keep
and write a number only for each trial.

Invariant: needs Ray and what `trainer` needs, and nothing of `sweep`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainer.base import Cache
    from trainer.contract import Step
    from trainer.progress import MicroBatch, Milestones
    from trainer.recipe import LoraRecipe

NEVER = 1_000_000  # more milestones than a trial has


class LoraTrial(tune.Trainable):  # type: ignore[misc]
    """A trial; its process and what it has loaded serve the next one too."""

    _cache: Cache
    _task: dict[str, Any]
    _number: int
    _recipe: LoraRecipe
    _batches: Iterator[MicroBatch]
    _milestones: Milestones
    _scratch: Path
    _first: float
    _last: Step

    def setup(self, config: dict[str, Any]) -> None:
        from trainer.base import Cache

        self._cache = Cache()
        self._task = json.loads(Path(config["task"]).read_text())
        self._begin(int(config["number"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(int(new_config["number"]))
        return True

    def step(self) -> dict[str, Any]:
        while True:  # the last micro-batch is a milestone
            batch = next(self._batches)
            if batch.step is not None:
                self._last = batch.step
                self._first = self._first or time.time()
            if self._milestones.add(batch):
                break
        number, _ = self._milestones.take(batch.tokens)
        done = batch.position == batch.total
        result = {"milestone": number, "loss": self._recipe.mean_loss(), "done": done}
        if done:
            self._recipe.save_adapter(Path(self._task["out"]) / f"adapter-{self._number}")
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._note()
        return result

    def _begin(self, number: int) -> None:
        from omegaconf import OmegaConf

        from trainer.progress import Milestones
        from trainer.recipe import LoraRecipe

        self._number, self._first = number, 0.0
        self._scratch = Path(self._task["out"]) / f"scratch-{number}"
        self._recipe = LoraRecipe(OmegaConf.create(self._task["configs"][number]), self._cache, self._scratch)
        self._batches = self._recipe.train()
        self._milestones = Milestones(self._task["milestone_tokens"])

    def _note(self) -> None:
        """Say when the first step was done and that the slot could be free from now on."""
        trained = {
            "number": self._number,
            "slot": str(os.getpid()),
            "first_step": self._first,
            "freed": time.time(),
            "steps": self._last.step,
            "loss": self._last.loss,
        }
        Path(self._task["out"], f"{self._number}.json").write_text(json.dumps(trained))


def main(path: str) -> int:
    task = json.loads(Path(path).read_text())
    workers, gpu = task["workers"], 1 if task["gpus"] else 0
    scratch = tempfile.mkdtemp(prefix="ray")  # short: Ray makes sockets below it
    ray.init(
        num_cpus=workers,
        num_gpus=workers * gpu,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _temp_dir=scratch,
    )
    scheduler = ASHAScheduler(
        time_attr="milestone",
        max_t=NEVER,  # a trial ends with its data
        grace_period=1 if task["halving"] else NEVER,
        reduction_factor=3,
    )
    tuner = tune.Tuner(
        tune.with_resources(LoraTrial, {"cpu": 1, "gpu": gpu}),
        param_space={"number": tune.grid_search(list(range(len(task["configs"])))), "task": path},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", scheduler=scheduler, reuse_actors=True, max_concurrent_trials=workers
        ),
        run_config=tune.RunConfig(
            name="bench",
            storage_path=str(Path(task["out"]).parent / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[],
            verbose=0,
        ),
    )
    results = tuner.fit()
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
    for error in results.errors:
        print(error)
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
