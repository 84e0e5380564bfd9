"""How a search for a noisy accuracy fares: with the variance of its rows, without it, and against TPE.

    python -m tests.bench.search_metric [--tables curves.npz ...] [--synthetic 2] [--seeds 20] [--rows 64] [--every 1]

The accuracy is made up from recorded losses as the simulated queue does it: each row is right with the probability
e^-loss, so that it is a binomial count (docs/simulated.md). Trials are driven by the real controller and study. A sweep
has found the optimum when a trial is complete whose configuration has, over all seeds of the table, a mean final loss
within 1 % of the best. Its cost is what all trials have trained by then, in full trials; one that costs more than the
limit has missed it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from sweep.config.space_grammar import parse_space
from sweep.model.limits import Limits
from sweep.model.objectives import Direction, Objective, Spread
from sweep.queues.simulated.tables import Table
from sweep.queues.simulated.world import World
from sweep.search.forecast_sampler import ForecastSampler
from sweep.search.storage import memory_storage
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.simulate import Silent, simulate
from tests.bench.search_budget import FATES, every, space
from trainer.contract import Metric, Report

NAME = "exact_match"
WITHIN = 0.01


class FoundError(Exception):
    """The optimum was found."""


class Watch(Silent):
    """Ends a sweep when a trial near the optimum is complete."""

    def __init__(self, table: Table, study: OptunaStudy, seed: int) -> None:
        self._study, self._table, self.tokens = study, table, dict[int, int]()
        ends = table.curves["val_loss"][:, -1].reshape(-1, len(table.seeds)).mean(axis=1).repeat(len(table.seeds))
        self._near = ends <= ends.min() * (1 + WITHIN)

    def reported(self, trial: int, report: Report) -> None:
        self.tokens[trial] = max(self.tokens.get(trial, 0), report.tokens)
        if report.final and self._near[self._table.row(self._study.params(trial), 0)]:
            raise FoundError

    @property
    def cost(self) -> float:
        return sum(self.tokens.values()) / self._table.trial_tokens


def arms(milestones: int, objective: Objective) -> dict[str, tuple[Callable[[int], Any], Any]]:
    """By name: what builds a sampler from a seed, and a pruner."""

    def ours(known: Objective) -> tuple[Callable[[int], Any], Any]:
        sampler = lambda seed: ForecastSampler(milestones=milestones, seed=seed, objective=known)  # noqa: E731
        return sampler, FreezeThaw(NAME, objective=known)

    median = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, milestones // 8))
    return {
        "ours": ours(objective),
        "ours without the variance": ours(replace(objective, rows=0)),
        "tpe + median": (lambda seed: optuna.samplers.TPESampler(seed=seed), median),
        "tpe": (lambda seed: optuna.samplers.TPESampler(seed=seed), optuna.pruners.NopPruner()),
    }


def cost(table: Table, arm: tuple[Callable[[int], Any], Any], args: argparse.Namespace, seed: int) -> float:
    """The cost of one sweep; the limit if the optimum was missed."""
    objective = Objective(NAME, Direction.MAXIMIZE, Spread.SHARE, args.rows, args.every)
    metric = Metric(NAME, "generate", {"rows": args.rows, "score": NAME}, args.every)
    sampler, pruner = arm
    config = StudyConfig(
        name="metric",
        space=parse_space(space(table)),
        objective=objective,
        seed=seed,
        sampler=sampler,
        pruner=pruner,
        milestones=table.milestones,
        history=1000,
    )
    study = OptunaStudy(config, memory_storage())
    watch = Watch(table, study, seed)
    limits = Limits(tokens=int(args.limit * table.trial_tokens), workers=args.workers)
    try:
        simulate(study, World(table, FATES, seed=seed), limits, listener=watch, metrics=(metric,))
    except FoundError:
        return watch.cost
    return float(args.limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", type=Path, default=[])
    parser.add_argument("--synthetic", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=100.0)
    parser.add_argument("--arms", default="")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| table | arm | cost, median | mean | 90 % | missed |\n| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, table in every(args, Path(folder)):
            objective = Objective(NAME, Direction.MAXIMIZE, Spread.SHARE, args.rows, args.every)
            for label, arm in arms(table.milestones, objective).items():
                if args.arms and label not in args.arms.split(","):
                    continue
                costs = sorted(cost(table, arm, args, seed) for seed in range(args.seeds))
                late = costs[int(0.9 * (len(costs) - 1))]
                missed = sum(value >= args.limit for value in costs)
                middle, mean = statistics.median(costs), statistics.fmean(costs)
                print(f"| {name} | {label} | {middle:.1f} | {mean:.1f} | {late:.1f} | {missed} |", flush=True)


if __name__ == "__main__":
    main()
