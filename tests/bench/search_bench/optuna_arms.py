"""Optuna's samplers and pruners as methods of the replay: ask, report, should_prune, tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna

from tests.bench.search_bench.replay import Decision, Job
from tests.bench.search_bench.tables import ACCUMULATION, LR, RANK, Table
from trainer.contract import Report

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def suggest(trial: optuna.Trial, table: Table) -> dict[str, Any]:
    """A trial's hyperparameters: what every method here searches."""
    return {
        RANK: trial.suggest_categorical(RANK, table.ranks),
        LR: trial.suggest_float(LR, table.rates[0], table.rates[-1], log=True),
        ACCUMULATION: trial.suggest_categorical(ACCUMULATION, table.accumulations),
    }


class OptunaMethod:
    """An Optuna study without pauses."""

    def __init__(self, table: Table, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner) -> None:
        self._table = table
        self._study = optuna.create_study(sampler=sampler, pruner=pruner)
        self._open: dict[int, optuna.Trial] = {}

    def next(self, worker: str) -> Job | None:
        trial = self._study.ask()
        params = suggest(trial, self._table)
        self._open[trial.number] = trial
        return Job(trial.number, params, self._table.milestones)

    def report(self, trial: int, report: Report, worker: str) -> Decision:
        asked = self._open[trial]
        assert report.val_loss is not None
        asked.report(report.val_loss, report.milestone)
        if report.final:
            self._study.tell(self._open.pop(trial), report.val_loss)
        elif asked.should_prune():
            self._study.tell(self._open.pop(trial), state=optuna.trial.TrialState.PRUNED)
            return Decision.STOP
        return Decision.GO_ON


Arm = Callable[[Table, int], OptunaMethod]


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def optuna_arms() -> dict[str, Arm]:
    """The arms by name; each makes a method from a table and a seed."""
    pruners = optuna.pruners
    last = 24
    return {
        "random": lambda table, seed: OptunaMethod(table, _random(seed), pruners.NopPruner()),
        "tpe": lambda table, seed: OptunaMethod(table, _tpe(seed), pruners.NopPruner()),
        "tpe+median": lambda table, seed: OptunaMethod(
            table, _tpe(seed), pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        ),
        "tpe+halving": lambda table, seed: OptunaMethod(
            table, _tpe(seed), pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
        ),
        "tpe+hyperband": lambda table, seed: OptunaMethod(
            table, _tpe(seed), pruners.HyperbandPruner(min_resource=1, max_resource=last, reduction_factor=3)
        ),
        "tpe+wilcoxon": lambda table, seed: OptunaMethod(
            table, _tpe(seed), pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2)
        ),
    }
