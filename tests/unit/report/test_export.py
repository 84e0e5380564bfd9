"""The table of W&B's own schedulers in docs/comparison.md, if the installed package can be asked."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from wandb.sdk.sweeps.run_state import RunState
from wandb.sdk.sweeps.scheduler.optimizer import RunConfig, RunWithMetrics
from wandb.sdk.sweeps.scheduler.optuna import OptunaDeclarativeOptimizer, build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo

SPACE = {"rate": {"min": 0.0, "max": 1.0}}


def scheduler(**config: Any) -> OptunaDeclarativeOptimizer:
    whole = {"metric": {"name": "loss", "goal": "minimize"}, "parameters": SPACE, "scheduler": {}, **config}
    made = build_optuna_optimizer(SweepInfo("id", "name", "team", "lora", whole, "controller"))
    assert isinstance(made, OptunaDeclarativeOptimizer)
    return made


def told(made: OptunaDeclarativeOptimizer, state: RunState, losses: list[float]) -> TrialState:
    """What becomes of a trial whose run is seen in this state."""
    (asked,) = made.ask_n_runs(1)
    history = [{"_step": step, "loss": loss} for step, loss in enumerate(losses)]
    run = RunWithMetrics(RunConfig({}), state, "run", {"loss": losses[-1]}, history)
    made.tell_run(asked.run_id, run)
    made.prune_run(asked.run_id, run)
    return made.study.trials[int(asked.run_id)].state


def test_what_the_optuna_job_imports_is_gone() -> None:
    assert find_spec("wandb.apis") is not None
    assert find_spec("wandb.apis.internal") is None


def test_without_a_python_function_the_scheduler_does_not_prune() -> None:
    study = scheduler().study
    assert isinstance(study.pruner, optuna.pruners.NopPruner)
    assert isinstance(study.sampler, optuna.samplers.TPESampler)


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CRASHED, RunState.KILLED, RunState.PREEMPTED])
def test_the_scheduler_tells_what_ended_otherwise_as_failed(state: RunState) -> None:
    assert told(scheduler(), state, [1.0]) is TrialState.FAIL


def test_the_scheduler_tells_pruned_of_a_run_that_still_runs() -> None:
    made = scheduler()
    made.study.pruner = optuna.pruners.ThresholdPruner(upper=1.0)
    assert told(made, RunState.RUNNING, [2.0]) is TrialState.PRUNED
    assert told(made, RunState.RUNNING, [0.5]) is TrialState.RUNNING


def test_the_scheduler_does_not_prune_for_several_objectives() -> None:
    metrics = [{"name": "loss", "goal": "minimize"}, {"name": "tokens", "goal": "maximize"}]
    made = scheduler(metric=None, metrics=metrics)
    made.study.pruner = optuna.pruners.ThresholdPruner(upper=1.0)
    assert told(made, RunState.RUNNING, [2.0]) is TrialState.RUNNING
