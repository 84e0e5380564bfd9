"""A sweep as a person sees it: a reader turns a room and its study into a `SweepState`.

Invariant: frozen values, without behaviour beyond derived properties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.model.facts import WorkerFacts
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import EvaluationStatus, TrialStatus
from trainer.contract import Report


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as a person sees it.

    Args:
        params: hyperparameters by torchtune key.
        value: the objective of a complete trial, else the last one that it reported; None before the first report.
        reason: why it ended as it did, one sentence.
        attempts: how many attempts it has had.
        worker: of its last attempt.
        reports: one for each milestone, ascending, over all attempts.
        adapter: the path of its adapter; None if it has none.
        final: the number of the trial that this final repeats, and the index of its seed; None if it is no final.
        evaluation_reason: why its evaluation failed.
        scores: of its evaluation, by name. What it measured while it trained stands in its reports.
    """

    number: int
    state: TrialStatus
    params: Mapping[str, Any]
    value: float | None = None
    reason: str = ""
    attempts: int = 0
    worker: str = ""
    reports: tuple[Report, ...] = ()
    adapter: str | None = None
    final: tuple[int, int] | None = None
    evaluation: EvaluationStatus = EvaluationStatus.NONE
    evaluation_reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def last(self) -> Report | None:
        """Its last report."""
        return self.reports[-1] if self.reports else None

    def measured(self, metric: str) -> float | None:
        """The last value of a metric in its reports; None before the first."""
        values = (report.value(metric) for report in reversed(self.reports))
        return next((value for value in values if not math.isnan(value)), None)

    @property
    def tokens(self) -> int:
        """Label tokens that it has trained by its last report."""
        return self.reports[-1].tokens if self.reports else 0


@dataclass(frozen=True, slots=True)
class SweepState:
    """A whole sweep as a person sees it.

    Args:
        objectives: what is searched for, at least one; values are shown as they were measured.
        metrics: the names of what trials measure beside the losses.
        base_scores: the metrics of the base without an adapter, by name: the line to beat. Empty before a trial has
            measured them.
        problems: what could not be measured, and metrics that look wrong, a sentence each.
        workers: those whose jobs are not gone.
        seconds: since the sweep was created; if no controller runs, until its study last changed.
        trial_tokens: label tokens of a trial that runs to its end, measured before the sweep began; 0 if unknown.
        controller: whether a controller is running the sweep now.
        waits: what that controller waits for, if not for its workers.
        unseen: why nobody can say whether a controller is running; empty if it can be said.
        unsure: why nobody can say which trial is the best, since files contradict each other; empty if it can be said.
        notes: what is damaged in the room, a sentence for each trial.
    """

    name: str
    objectives: tuple[Objective, ...]
    rows: tuple[TrialRow, ...]
    workers: tuple[WorkerFacts, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seconds: float = 0.0
    trial_tokens: int = 0
    controller: bool = False
    waits: str = ""
    unseen: str = ""
    unsure: str = ""
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    base_scores: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def objective(self) -> Objective:
        """The first objective."""
        return self.objectives[0]

    @property
    def metric(self) -> str:
        """The name of the first objective."""
        return self.objective.name

    @property
    def best(self) -> TrialRow | None:
        """The complete trial with the best objective, finals left out; None if no trial is complete, or `unsure`.

        If finals have been trained, it is the finalist whose finals have the best mean objective.
        """
        if self.unsure:
            return None
        done = [row for row in self.rows if row.state is TrialStatus.COMPLETE and row.value is not None]
        done = [row for row in done if row.final is None]
        means = {number: sum(values.values()) / len(values) for number, values in self.finals.items()}
        done = [row for row in done if row.number in means] or done
        minimised = self.objective.minimised
        return min(done, key=lambda row: minimised(means.get(row.number, row.value or 0.0)), default=None)

    @property
    def finals(self) -> dict[int, dict[int, float]]:
        """By finalist the objectives of its complete finals by seed; only finalists that have the most of them."""
        values: dict[int, dict[int, float]] = {}
        for row in self.rows:
            if row.final is not None and row.state is TrialStatus.COMPLETE and row.value is not None:
                values.setdefault(row.final[0], {})[row.final[1]] = row.value
        most = max(map(len, values.values()), default=0)
        return {number: by_seed for number, by_seed in values.items() if len(by_seed) == most}

    @property
    def tokens(self) -> int:
        """Label tokens that all trials have trained by their last reports."""
        return sum(row.tokens for row in self.rows)

    def count(self, state: TrialStatus) -> int:
        """How many trials are in this state."""
        return sum(1 for row in self.rows if row.state is state)
