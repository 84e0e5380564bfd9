"""What a sweep of so many trials finds, and spends: the question that the defaults answer (`search.trials` is 24).

    python -m tests.bench.search_budget --tables ../shared/data/curves/*.npz [--synthetic N] [--trials 12,24,48]
        [--seeds 30] [--workers 1]

Every arm is a sampler with a pruner as `conf/` has them, driven by the real controller and study on the simulated
queue. `search.py` asks how soon the best is found when trials are not counted; here they are. Regret is that of the
best complete trial against the best configuration's final validation loss; cost is in full trials' tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml

from sweep.config.space_grammar import parse_space
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import Finished
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import Table, load_table
from sweep.queues.simulated.world import World
from sweep.search.forecast_sampler import ForecastSampler
from sweep.search.storage import memory_storage
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Promotion
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.simulate import Silent, simulate
from tests.bench.search_bench import tables

Sampler = Callable[[int], optuna.samplers.BaseSampler]
ROOT = Path(__file__).resolve().parents[2]
FATES = SimulationModel(speed_spread=0.2)


def arms(milestones: int) -> dict[str, tuple[Sampler, Any]]:
    def tpe(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)

    def ours(seed: int) -> optuna.samplers.BaseSampler:
        return ForecastSampler(milestones=milestones, seed=seed)

    def with_prior(seed: int) -> optuna.samplers.BaseSampler:
        prior = yaml.safe_load((ROOT / "conf" / "prior" / "lora.yaml").read_text())
        return ForecastSampler(milestones=milestones, prior=prior, seed=seed)

    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    return {
        "random": (lambda seed: optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner()),
        "tpe": (tpe, optuna.pruners.NopPruner()),
        "tpe+successive_halving": (tpe, halving),
        "tpe+asha": (tpe, AsynchronousHalving(metric="val_loss", min_resource=2, reduction_factor=3)),
        "forecast+freeze_thaw": (ours, FreezeThaw(metric="val_loss")),
        "forecast+freeze_thaw prior=lora": (with_prior, FreezeThaw(metric="val_loss")),
    }


class Resumed(Silent):
    """Counts how often a paused trial went on, each time a start of its own."""

    times = 0

    def promoted(self, promotion: Promotion) -> None:
        self.times += 1


def space(table: Table) -> dict[str, str]:
    rates = table.grid["optimizer.lr"]
    grammar = {"optimizer.lr": f"tag(log, interval({rates[0]:.6g}, {rates[-1]:.6g}))"}
    for key in ("model.lora_rank", "gradient_accumulation_steps"):
        grammar[key] = f"choice({', '.join(f'{value:g}' for value in table.grid[key])})"
    return grammar


def sweep(table: Table, arm: str, trials: int, workers: int, seed: int) -> tuple[float, float, int]:
    """(regret, cost, how often a paused trial went on) of one sweep."""
    sampler, pruner = arms(table.milestones)[arm]
    config = StudyConfig(
        name="budget",
        space=parse_space(space(table)),
        objective=Objective("val_loss"),
        seed=seed,
        sampler=sampler,
        pruner=pruner,
        milestones=table.milestones,
        history=1000,
    )
    study = OptunaStudy(config, memory_storage())
    world = World(table, FATES, seed=seed)
    resumed = Resumed()
    finish = simulate(study, world, Limits(trials=trials, workers=workers), listener=resumed)
    assert finish.how is Finished.DONE, finish
    finals = table.curves["val_loss"][:, -1].reshape(-1, len(table.seeds)).mean(axis=1)
    facts = study.facts()
    best = facts.best if facts.best is not None else float("inf")
    return best / float(finals.min()) - 1.0, facts.tokens / table.trial_tokens, resumed.times


def synthetic(number: int, folder: Path) -> Table:
    """A table of the benchmark's parametric family, in the simulated queue's format."""
    made = tables.synthetic(number)
    axes = (made.ranks, made.rates, made.accumulations, tuple(range(made.seeds)))
    grid = np.meshgrid(*(np.array(axis, dtype=float) for axis in axes), indexing="ij")
    columns = dict(zip(("rank", "lr", "accumulation", "seed"), (axis.ravel() for axis in grid), strict=True))
    curves = {key: getattr(made, key).reshape(-1, made.milestones) for key in ("val_loss", "train_loss", "grad_norm")}
    path = folder / f"{made.name}.npz"
    np.savez(path, **columns, **curves, tokens=made.tokens.reshape(-1, made.milestones))
    return load_table(str(path))


def every(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Table]]:
    for path in args.tables:
        yield path.stem, load_table(str(path))
    for number in range(args.synthetic):
        yield f"synthetic-{number}", synthetic(number, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", type=Path, default=[])
    parser.add_argument("--synthetic", type=int, default=0)
    parser.add_argument("--arms", default=",".join(arms(1)))
    parser.add_argument("--trials", default="12,24,48")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=30)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| table | trials | arm | regret, median | mean | 90 % | cost, median | resumed, median | seconds a sweep |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, table in every(args, Path(folder)):
            for trials in map(int, args.trials.split(",")):
                for arm in args.arms.split(","):
                    began = time.perf_counter()
                    results = [sweep(table, arm, trials, args.workers, seed) for seed in range(args.seeds)]
                    seconds = (time.perf_counter() - began) / args.seeds
                    regrets, costs, resumed = (sorted(column) for column in zip(*results, strict=True))
                    middle, high = statistics.median(regrets), regrets[max(0, round(0.9 * len(regrets)) - 1)]
                    row = f"| {name} | {trials} | {arm} | {middle:.1%} | {statistics.mean(regrets):.1%} | {high:.1%} |"
                    spent = f"{statistics.median(costs):.1f} | {statistics.median(resumed):g}"
                    print(f"{row} {spent} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
