"""What `search.history` costs in quality: TPE shown all ended trials, and shown only the best and the newest.

    python -m tests.bench.tpe_history [--seeds N] [--trials N] [--history N] [--workers N]

Each seed draws a table of a parametric family (`search_bench.tables.synthetic`) and the sampler's seed; both arms
search it with as many trials running at a time as there are workers, which end in the order in which they were asked.
A trial's value is the final validation loss of its configuration, interpolated between the table's rates (no step of
the grid hides what a proposal gains), with a jitter of 0.2 %. Prints, paired over seeds, how far the best proposal's
true value lies above the best of the table, what the second half of the proposals come to on average, and the processor
time of an ask.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from scipy.stats import ttest_rel

from sweep.config.space_grammar import parse_space
from sweep.model.effects import Tell
from sweep.model.objectives import Objective
from sweep.model.states import Ending
from sweep.search.storage import memory_storage
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from tests.bench.search_bench.tables import ACCUMULATION, LR, RANK, Table, synthetic
from trainer.contract import Report


@dataclass(frozen=True)
class Search:
    """What one search came to.

    Args:
        regret: of the proposal of the best true value, above the table's best, as a share of it.
        late: the mean of the same over the second half of the proposals, diverged ones counted as 1.
        milliseconds: of processor time for an ask.
    """

    regret: float
    late: float
    milliseconds: float


def true_value(table: Table, params: Mapping[str, Any]) -> float:
    """The final loss of a configuration, averaged over the table's seeds and interpolated in the logarithm of the
    rate."""
    rank, accumulation = table.ranks.index(params[RANK]), table.accumulations.index(params[ACCUMULATION])
    losses = table.val_loss[rank, :, accumulation, :, -1].mean(axis=1)
    return float(np.interp(np.log(params[LR]), np.log(table.rates), losses))


def search(table: Table, seed: int, trials: int, history: int | None, workers: int) -> Search:
    """One search of a table."""
    space = {
        RANK: f"choice({','.join(map(str, table.ranks))})",
        LR: f"tag(log, interval({table.rates[0]}, {table.rates[-1]}))",
        ACCUMULATION: f"choice({','.join(map(str, table.accumulations))})",
    }
    config = StudyConfig(
        name="history",
        space=parse_space(space),
        objective=Objective("val_loss"),
        seed=seed,
        sampler=lambda number: optuna.samplers.TPESampler(seed=number),
        pruner=optuna.pruners.NopPruner(),
        milestones=1,
        history=history,
    )
    study = OptunaStudy(config, memory_storage())
    jitter = 1.0 + 0.002 * np.random.default_rng(seed).standard_normal(trials)
    oracle = float(table.val_loss[..., -1].mean(axis=3).min())
    true: list[float] = []
    running, spent = deque[int](), 0.0
    for _ in range(trials):
        if len(running) == workers:
            number = running.popleft()
            value = true[number] * float(jitter[number])
            study.record(number, [Report(1, 1, 1, 0, value, 1.0, 0.0, 1.0, 1.0, val_loss=value, final=True)])
            study.tell(Tell(number, Ending.COMPLETE, ""), 1)
        began = time.process_time()
        running.append(study.ask())
        spent += time.process_time() - began
        true.append(true_value(table, study.params(running[-1])))
    regrets = [min(1.0, value / oracle - 1.0) for value in true]
    return Search(min(regrets), statistics.fmean(regrets[trials // 2 :]), 1e3 * spent / trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--workers", type=int, default=8)
    args = parser.parse_args()
    by_history: dict[int | None, list[Search]] = {None: [], args.history: []}
    for seed in range(args.seeds):
        for history, searches in by_history.items():
            searches.append(search(synthetic(100 + seed), seed, args.trials, history, args.workers))
        print(seed, *(f"{one.regret:.5f} {one.late:.4f}" for one in (s[-1] for s in by_history.values())), flush=True)
    print(
        "\n| shown | regret of the best, mean | second half's proposals, mean | ms an ask |\n| --- | --- | --- | --- |"
    )
    for history, searches in by_history.items():
        shown = "all" if history is None else f"{history}"
        best, late = (statistics.fmean(getattr(one, key) for one in searches) for key in ("regret", "late"))
        print(f"| {shown} | {best:.3%} | {late:.2%} | {statistics.fmean(o.milliseconds for o in searches):.1f} |")
    for key in ("regret", "late"):
        every, bounded = ([getattr(one, key) for one in searches] for searches in by_history.values())
        differences = [b - a for a, b in zip(every, bounded, strict=True)]
        half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
        test = ttest_rel(bounded, every).pvalue if any(differences) else 1.0
        print(
            f"{key}: bounded less all {statistics.fmean(differences):+.4%} ± {half:.4%} (95 %), "
            f"paired t-test p {test:.2f}"
        )


if __name__ == "__main__":
    main()
