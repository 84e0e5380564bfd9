"""Ray Tune's ASHA, with random proposals and with Ray's Optuna search (TPE), by their own calls; no cluster runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import wire  # beside this file: adapters run as scripts
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch


class _Trial:
    """What the scheduler reads of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class Ray:
    def __init__(self, arm: str, space: Mapping[str, Any], milestones: int, seed: int) -> None:
        kind, _, eta = arm.partition("-")
        self._rng = np.random.default_rng(seed)
        np.random.seed(seed)
        self._space, self._milestones = space, milestones
        self._scheduler = ASHAScheduler(
            time_attr="milestone",
            metric="loss",
            mode="min",
            max_t=milestones,
            grace_period=1,
            reduction_factor=float(eta),
            stop_last_trials=False,
        )
        self._search = None
        if kind == "tpe":
            config = {
                key: tune.loguniform(*values) if key == "optimizer.lr" else tune.choice(values)
                for key, values in space.items()
            }
            self._search = OptunaSearch(config, metric="loss", mode="min", seed=seed)
        self._trials: list[_Trial] = []

    def next(self) -> Mapping[str, Any]:
        trial = _Trial(len(self._trials))
        self._trials.append(trial)
        self._scheduler.on_trial_add(None, trial)
        params = self._search.suggest(trial.trial_id) if self._search else self._random()
        return {"trial": int(trial.trial_id), "params": params, "until": self._milestones}

    def report(self, trial: int, milestone: int, value: float) -> str:
        asked, result = self._trials[trial], {"loss": value, "milestone": milestone, "training_iteration": milestone}
        if milestone >= self._milestones:
            self._scheduler.on_trial_complete(None, asked, result)
            if self._search:
                self._search.on_trial_complete(asked.trial_id, result)
            return "go on"
        if self._search:
            self._search.on_trial_result(asked.trial_id, result)
        if self._scheduler.on_trial_result(None, asked, result) == "STOP":
            if self._search:  # as Ray does: a stopped trial is complete with its last result
                self._search.on_trial_complete(asked.trial_id, result)
            return "stop"
        return "go on"

    def _random(self) -> dict[str, Any]:
        return {
            key: float(np.exp(self._rng.uniform(*np.log(values))))
            if key == "optimizer.lr"
            else values[self._rng.integers(len(values))]
            for key, values in self._space.items()
        }


if __name__ == "__main__":
    wire.serve(Ray)
