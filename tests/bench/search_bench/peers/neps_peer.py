"""NePS: PriorBand, and ifBO (whose surrogate's weights NePS downloads), by ask and tell. A configuration that is asked
for at a larger fidelity goes on from where it stood."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import neps
import numpy as np
import torch
import wire  # beside this file: adapters run as scripts
from neps.optimizers import algorithms
from neps.optimizers.ask_and_tell import AskAndTell

logging.disable(logging.WARNING)
torch.set_num_threads(1)
FIDELITY = "milestones"


class Neps:
    def __init__(self, arm: str, space: Mapping[str, Any], milestones: int, seed: int) -> None:
        np.random.seed(seed)
        torch.manual_seed(seed)
        import random

        random.seed(seed)
        kind, _, rest = arm.partition("-")
        self._names = {key.replace(".", "_"): key for key in space}
        # The same belief as our `prior=lora`: the middle of the rates, large ranks, small batches; weakly held.
        low, high = space["optimizer.lr"]
        parameters: dict[str, Any] = {FIDELITY: neps.IntegerFidelity(lower=1, upper=milestones)}
        for name, key in self._names.items():
            if key == "optimizer.lr":
                parameters[name] = neps.Float(
                    lower=low, upper=high, log=True, prior=float(np.sqrt(low * high)), prior_confidence="low"
                )
            else:
                prior = len(space[key]) - 2 if "rank" in key else 0
                parameters[name] = neps.Categorical(choices=tuple(space[key]), prior=prior, prior_confidence="low")
        pipeline = type("Space", (neps.PipelineSpace,), parameters)()
        if kind == "ifbo":
            search: Any = algorithms.ifbo(pipeline, use_priors=True)
        else:
            base, _, eta = rest.partition("-")
            search = algorithms.priorband(pipeline, eta=int(eta), base=base)
        self._asker = AskAndTell(search)
        self._milestones = milestones
        self._trials: dict[str, int] = {}
        self._stands: dict[int, int] = {}
        self._asked: dict[int, tuple[str, int]] = {}

    def next(self) -> Mapping[str, Any]:
        asked = self._asker.ask()
        trial = self._trials.setdefault(asked.metadata.id.rpartition("_")[0], len(self._trials))
        config = asked.config
        until = next(int(value) for key, value in config.items() if FIDELITY in key)
        self._asked[trial] = (asked.metadata.id, until)
        params = {
            key: value for name, key in self._names.items() for got, value in config.items() if got.endswith(name)
        }
        return {"trial": trial, "params": params, "until": until}

    def report(self, trial: int, milestone: int, value: float) -> str:
        name, until = self._asked[trial]
        if milestone >= until:
            self._asker.tell(name, {"objective_to_minimize": value, "cost": 1.0})
        return "go on"


if __name__ == "__main__":
    wire.serve(Neps)
