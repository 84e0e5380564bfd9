"""The configuration of a study.

Invariant: it is built from a sweep's settings alone, so that every controller of the sweep builds the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from sweep.config.space import Space
from sweep.model.objectives import Objective
from sweep.search.sampling import SamplerFactory
from sweep.search.strategy.protocol import Strategy


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """The configuration of a study.

    Args:
        name: of the study in its storage.
        objective: what is searched for.
        seed: the seed of the sweep.
        sampler: builds a sampler from a seed.
        pruner: a pruner of Optuna, which only stops; or a strategy of ours, which may also pause and promote.
        per_trial_seed: whether the sampler gets a seed for each trial. Grid and quasi-random samplers keep one seed,
            which identifies their sequence.
        milestones: the number of reports of a trial that runs to its end.
        history: the most ended trials that a TPE sampler is shown, the best and the newest; None: all.
        finalists: how many of the best trials are trained again in the end.
        seeds: with how many seeds each finalist is trained again.
    """

    name: str
    space: Space
    objective: Objective
    seed: int
    sampler: SamplerFactory
    pruner: optuna.pruners.BasePruner | Strategy
    per_trial_seed: bool = True
    milestones: int = 12
    history: int | None = None
    finalists: int = 0
    seeds: int = 0
