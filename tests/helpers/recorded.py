"""A recorded sweep: 24 trials of `experiment=demo` under successive halving, finished and half-way.

`recorded_sweep.json` has each trial's hyperparameters, its reports (milestone, tokens, loss, grad_norm, tokens per
second, val_loss; rounded to five digits), and which trials were running at the half-way moment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState, TrialRow
from trainer.contract import Report

METRIC = "val_loss"
DISTRIBUTIONS = {
    "model.lora_rank": CategoricalDistribution((4, 8, 16, 32)),
    "optimizer.lr": FloatDistribution(1e-4, 5e-2, log=True),
    "gradient_accumulation_steps": CategoricalDistribution((1, 2, 4)),
}
RECORD = json.loads(Path(__file__).with_name("recorded_sweep.json").read_text())


def midway_state() -> SweepState:
    """The sweep while two of its trials were running."""
    moment = RECORD["midway"]
    running = {int(number): count for number, count in moment["running"].items()}
    rows = [_row(trial, running.get(trial["number"])) for trial in RECORD["trials"][: moment["trials"]]]
    return SweepState(
        name="demo-1",
        objectives=(Objective(METRIC),),
        rows=tuple(rows),
        limits=Limits(trials=len(RECORD["trials"])),
        seconds=moment["seconds"],
        trial_tokens=RECORD["trial_tokens"],
        controller=True,
    )


def finished_study() -> optuna.Study:
    """The study of the finished sweep."""
    study = optuna.create_study()
    study.add_trials([_frozen(trial) for trial in RECORD["trials"]])
    return study


def _row(trial: dict[str, Any], running_reports: int | None) -> TrialRow:
    reports = tuple(_report(*raw) for raw in trial["reports"][:running_reports])
    state = TrialStatus(trial["state"]) if running_reports is None else TrialStatus.RUNNING
    value = reports[-1].val_loss
    return TrialRow(trial["number"], state, trial["params"], value, attempts=1, reports=reports)


def _report(*raw: Any) -> Report:
    milestone, tokens, loss, grad_norm, tokens_per_second, val_loss = raw
    return Report(milestone, milestone, tokens, 0, loss, grad_norm, 0.0, tokens_per_second, 0.0, val_loss=val_loss)


def _frozen(trial: dict[str, Any]) -> FrozenTrial:
    values = {raw[0]: raw[-1] for raw in trial["reports"]}
    return create_trial(
        state=TrialState[trial["state"].upper()],
        value=values[max(values)],
        params=trial["params"],
        distributions=dict(DISTRIBUTIONS),
        intermediate_values=values,
    )
