"""What another pruner would have made of a sweep: its recorded reports under the same controller, in simulated time.

Invariants: nothing is written. The proposals are those of the sweep, in their order; where the other pruner lets a
trial go on that the sweep had stopped, what would have come is not known, and the trial ends where its record ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sweep.config.overrides import section_of
from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model import Limits, SweepState, TrialRow, TrialStatus
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import Table
from sweep.queues.simulated.world import RECORD_ENDS, World
from sweep.search.build import build_pruner
from sweep.search.storage import REASON, memory_storage
from sweep.search.study import OptunaStudy
from sweep.wiring.compose import compose_config
from sweep.wiring.session import study_config
from sweep.wiring.simulate import simulate

KEY = "trial"


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have been.

    Args:
        trials: trials of the sweep that reported; those without a report are left out, and finals, which no pruner
            judges.
        tokens_then, tokens: label tokens that the sweep spent, and that the other pruner would have.
        best_then, best: the winner's value, and that of the other pruner's winner; None without one.
        winner: the sweep's best trial.
        winner_fate: complete or pruned, under the other pruner; and why.
        cut: trials that would have gone on beyond what was recorded of them.
    """

    trials: int
    tokens_then: int
    tokens: int
    best_then: float | None
    best: float | None
    winner: int
    winner_fate: str
    reason: str
    cut: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The answer in a few lines."""
        share = self.tokens / self.tokens_then if self.tokens_then else math.nan
        lines = [
            f"{self.trials} trials: {self.tokens:,} label tokens, {share:.0%} of the {self.tokens_then:,} spent",
            f"the winner, trial {self.winner}: {self.winner_fate}" + (f" ({self.reason})" if self.reason else ""),
            f"best {_number(self.best)}, and {_number(self.best_then)} in the sweep",
        ]
        if self.cut:
            lines.append(
                f"{self.cut} trials would have gone on beyond what was recorded of them: tokens are a lower bound"
            )
        return "\n".join(lines)


def pruner_section(settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """The pruner that these words of a command line name.

    Raises:
        ConfigError: a word is about something else, or wrong.
    """
    for word in overrides:
        if word.partition("=")[0].split(".")[0] != "pruner":
            raise ConfigError(f"{word}: a replay takes pruner=NAME and pruner.KEY=VALUE only; the sampler stays")
    cfg = compose_config([*overrides, f"objective.milestones={settings.reports_per_trial}"])
    return section_of(cfg, "pruner")


def replay(state: SweepState, settings: Settings, pruner: Mapping[str, Any]) -> Replay:
    """Run the sweep's reports through another pruner.

    Raises:
        ConfigError: the pruner is none, or the sweep has no complete trial.
    """
    winner = state.best
    if winner is None:
        raise ConfigError(f"{state.name} has no complete trial yet, so there is no winner to ask about")
    rows = [row for row in state.rows if row.reports and row.final is None]
    other = replace(settings, pruner=dict(pruner))
    config = replace(study_config(other), pruner=build_pruner(other))
    study = OptunaStudy(replace(config, milestones=_length(rows), finalists=0, seeds=0), memory_storage())
    for row in rows:
        study.enqueue(row.params, again=True)
    workers = settings.queue.workers or 1
    world = World(recorded(rows), SimulationModel(speed_spread=0.0, startup_spread=0.0, slot_cost=0.0))
    simulate(study, world, Limits(trials=len(rows), workers=workers), configure=lambda number: {KEY: number, "seed": 0})
    trials = study.frozen()
    fate = trials[rows.index(winner)]
    return Replay(
        trials=len(rows),
        tokens_then=sum(row.tokens for row in rows),
        tokens=study.facts().tokens,
        best_then=winner.value,
        best=study.facts().best,
        winner=winner.number,
        winner_fate=fate.state.name.lower(),
        reason=str(fate.user_attrs.get(REASON, "")),
        cut=sum(1 for trial in trials if trial.user_attrs.get(REASON) == RECORD_ENDS),
    )


def recorded(rows: Sequence[TrialRow]) -> Table:
    """The reports of a sweep as a table with one trial a point; what was not recorded repeats the last report."""
    length = _length(rows)
    curves = {name: np.zeros((len(rows), length)) for name in ("tokens", "train_loss", "grad_norm", "val_loss")}
    ends = {}
    for index, row in enumerate(rows):
        reports = {report.milestone: report for report in row.reports}
        last = row.reports[0]
        for milestone in range(1, length + 1):
            last = reports.get(milestone, last)
            values = (last.tokens, last.loss, last.grad_norm, math.nan if last.val_loss is None else last.val_loss)
            for name, value in zip(curves, values, strict=True):
                curves[name][index, milestone - 1] = value
        if row.state is not TrialStatus.COMPLETE:
            ends[index] = row.reports[-1].milestone
        tokens = curves["tokens"][index]
        tokens[:] = np.maximum.accumulate(tokens + np.arange(length) * 1e-3)  # time goes on where none were counted
    grid = {KEY: tuple(float(i) for i in range(len(rows)))}
    return Table("the sweep's reports", grid, (0,), {(i, 0): i for i in range(len(rows))}, curves, ends)


def _length(rows: Sequence[TrialRow]) -> int:
    return max(row.reports[-1].milestone for row in rows)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
