"""SMAC's multi-fidelity facade (Hyperband over a random forest), by ask and tell; a larger budget of a configuration
that has been trained goes on from where it stood."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wire  # beside this file: adapters run as scripts
from ConfigSpace import ConfigurationSpace, Float, OrdinalHyperparameter
from smac import MultiFidelityFacade, Scenario
from smac.runhistory.dataclasses import TrialInfo, TrialValue

logging.disable(logging.WARNING)


class Smac:
    def __init__(self, arm: str, space: Mapping[str, Any], milestones: int, seed: int) -> None:
        config = ConfigurationSpace(seed=seed)
        for key, values in space.items():
            if key == "optimizer.lr":
                config.add(Float(key, tuple(values), log=True))
            else:
                config.add(OrdinalHyperparameter(key, values))
        eta = int(arm.partition("-")[2])
        scenario = Scenario(
            config,
            output_directory=Path(tempfile.mkdtemp(prefix="smac-")),
            deterministic=True,
            n_trials=100_000,
            min_budget=1,
            max_budget=milestones,
            seed=seed,
        )
        self._smac = MultiFidelityFacade(
            scenario,
            lambda config, seed, budget: 0.0,
            initial_design=MultiFidelityFacade.get_initial_design(scenario, n_configs=8),
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=eta),
            acquisition_maximizer=MultiFidelityFacade.get_acquisition_maximizer(scenario, challengers=1000),
            logging_level=False,
            overwrite=True,
        )
        self._milestones = milestones
        self._trials: dict[Any, int] = {}
        self._stands: dict[int, int] = {}
        self._last: dict[int, float] = {}
        self._asked: dict[int, tuple[TrialInfo, int]] = {}

    def next(self) -> Mapping[str, Any]:
        while True:
            info = self._smac.ask()
            trial = self._trials.setdefault(info.config, len(self._trials))
            until = max(1, round(info.budget))
            if trial in self._asked:  # the same configuration at two budgets at once: wait for the first
                return {"trial": None}
            if self._stands.get(trial, 0) >= until:  # known already, from a larger budget
                self._tell(info, self._last[trial])
                continue
            self._asked[trial] = (info, until)
            params = {
                key: value.item() if hasattr(value, "item") else value for key, value in dict(info.config).items()
            }
            return {"trial": trial, "params": params, "until": until}

    def report(self, trial: int, milestone: int, value: float) -> str:
        info, until = self._asked[trial]
        self._stands[trial], self._last[trial] = milestone, value
        if milestone >= until:
            del self._asked[trial]
            self._tell(info, value)
        return "go on"

    def _tell(self, info: TrialInfo, value: float) -> None:
        self._smac.tell(info, TrialValue(cost=value, time=0.1), save=False)


if __name__ == "__main__":
    wire.serve(Smac)
