"""Syne Tune's ASHA and BOHB (both stop; this version has no pausing variant), by their ask-and-tell methods."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import wire  # beside this file: adapters run as scripts
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import loguniform, ordinal
from syne_tune.optimizer.baselines import ASHA, BOHB


class SyneTune:
    def __init__(self, arm: str, space: Mapping[str, Any], milestones: int, seed: int) -> None:
        np.random.seed(seed)
        config = {
            key: loguniform(*values) if key == "optimizer.lr" else ordinal(values, kind="equal")
            for key, values in space.items()
        }
        kind, _, eta = arm.partition("-")
        self._scheduler = {"asha": ASHA, "bohb": BOHB}[kind](
            config_space=config,
            metric="loss",
            time_attr="milestone",
            max_t=milestones,
            grace_period=1,
            reduction_factor=float(eta),
            random_seed=seed,
        )
        self._milestones = milestones
        self._trials: list[Trial] = []

    def next(self) -> Mapping[str, Any]:
        suggestion = self._scheduler.suggest()
        trial = Trial(len(self._trials), suggestion.config, datetime.datetime.now())
        self._trials.append(trial)
        self._scheduler.on_trial_add(trial)
        return {"trial": trial.trial_id, "params": dict(suggestion.config), "until": self._milestones}

    def report(self, trial: int, milestone: int, value: float) -> str:
        result = {"loss": value, "milestone": milestone}
        if milestone >= self._milestones:
            self._scheduler.on_trial_complete(self._trials[trial], result)
            return "go on"
        decision = self._scheduler.on_trial_result(self._trials[trial], result)
        if decision == "STOP":
            self._scheduler.on_trial_remove(self._trials[trial])
        return {"CONTINUE": "go on", "STOP": "stop", "PAUSE": "pause"}[decision]


if __name__ == "__main__":
    wire.serve(SyneTune)
