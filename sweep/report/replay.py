"""Estimates what another pruner would have made of a sweep: replays its recorded reports in simulated time.

Invariants: nothing is written. The trials are those of the sweep, in the same order. If the other pruner continues a
trial that the sweep stopped, its further reports are unknown, and the trial ends where its record ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sweep.config.overrides import section_of
from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model.limits import Limits
from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import CURVES, Table
from sweep.queues.simulated.world import RECORD_ENDS, World
from sweep.report.formatting import number
from sweep.search.attributes import REASON
from sweep.search.build import build_pruner
from sweep.search.storage import memory_storage
from sweep.search.study import OptunaStudy
from sweep.wiring.compose import compose_config
from sweep.wiring.session import study_config
from sweep.wiring.simulate import simulate

KEY = "trial"
# Trials of these states have reported, unless their files are damaged.
JUDGED = (TrialStatus.COMPLETE, TrialStatus.PRUNED)


@dataclass(frozen=True, slots=True)
class Replay:
    """A sweep under another pruner, compared with the sweep itself.

    Args:
        trials: trials that were replayed: those of the sweep that reported, without the finals, which no pruner judges.
        sweep_tokens: label tokens that the sweep trained.
        tokens: label tokens that it would have trained under the other pruner.
        sweep_best: the objective of the sweep's best trial.
        best: the best objective under the other pruner; None if no trial would have been complete.
        winner: the number of the sweep's best trial.
        winner_ending: how that trial would have ended: `complete` or `pruned`.
        winner_reason: why.
        left_out: numbers of ended trials without reports, which cannot be replayed.
        cut: trials that the other pruner would have continued beyond the end of their record.
    """

    trials: int
    sweep_tokens: int
    tokens: int
    sweep_best: float | None
    best: float | None
    winner: int
    winner_ending: str
    winner_reason: str
    cut: int
    left_out: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `sweep replay --json` prints."""
        return {
            "trials": self.trials,
            "tokens_then": self.sweep_tokens,
            "tokens": self.tokens,
            "best_then": self.sweep_best,
            "best": self.best,
            "winner": self.winner,
            "winner_fate": self.winner_ending,
            "reason": self.winner_reason,
            "cut": self.cut,
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }

    def text(self) -> str:
        """What `sweep replay` prints: the comparison in a few lines."""
        share = self.tokens / self.sweep_tokens if self.sweep_tokens else math.nan
        reason = f" ({self.winner_reason})" if self.winner_reason else ""
        lines = [
            f"tokens: {self.tokens:,} for {self.trials} trials, {share:.0%} of the sweep's {self.sweep_tokens:,}",
            f"the sweep's best trial: trial {self.winner} would have ended as {self.winner_ending}{reason}",
            f"best value: {number(self.best)}; in the sweep {number(self.sweep_best)}",
        ]
        if self.left_out:
            numbers = ", ".join(map(str, self.left_out))
            lines.append(f"left out, since their reports are lost: {numbers}")
        if self.cut:
            lines.append(f"{self.cut} trials would have continued beyond their record, so the tokens are a lower bound")
        return "\n".join(lines)


def pruner_section(settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """The section `pruner` that these overrides name.

    Raises:
        ConfigError: an override is wrong, or concerns something else than the pruner.
    """
    for override in overrides:
        if override.partition("=")[0].split(".")[0] != "pruner":
            raise ConfigError(
                f"{override}: a replay keeps the sweep's trials and changes only the pruner; "
                "give pruner=NAME or pruner.KEY=VALUE"
            )
    cfg = compose_config([*overrides, f"objective.milestones={settings.reports_per_trial}"])
    return section_of(cfg, "pruner")


def replay(state: SweepState, settings: Settings, pruner: Mapping[str, Any]) -> Replay:
    """Replay the sweep's reports under another pruner.

    Args:
        pruner: the section `pruner` of a configuration.

    Raises:
        ConfigError: the section names no pruner, or the sweep has no complete trial.
    """
    winner = state.best
    if state.unsure:
        raise ConfigError(f"{state.unsure}; a replay compares with the best one")
    if winner is None:
        raise ConfigError(f"{state.name} has no complete trial yet; a replay compares with the best one")
    searched = [row for row in state.rows if row.final is None]
    rows = [row for row in searched if row.reports and all(key in settings.space for key in row.params)]
    if winner not in rows:
        raise ConfigError(
            f"trial {winner.number}, the best of {state.name}, has no reports in its files, and a replay compares with "
            f"it; `sweep doctor --room {state.name}` says what is damaged"
        )
    left_out = [row.number for row in searched if row not in rows and row.state in JUDGED]
    other = replace(settings, pruner=dict(pruner))
    config = replace(study_config(other), pruner=build_pruner(other))
    study = OptunaStudy(replace(config, milestones=_length(rows), finalists=0, seeds=0), memory_storage())
    for row in rows:
        study.enqueue(row.params, again=True)
    workers = settings.queue.workers or 1
    world = World(recorded(rows), SimulationModel(speed_spread=0.0, startup_spread=0.0, slot_cost=0.0))
    simulate(study, world, Limits(trials=len(rows), workers=workers), configure=lambda number: {KEY: number, "seed": 0})
    trials = study.frozen()
    replayed_winner = trials[rows.index(winner)]
    return Replay(
        trials=len(rows),
        sweep_tokens=sum(row.tokens for row in rows),
        tokens=study.facts().tokens,
        sweep_best=winner.value,
        best=None if (best := study.facts().best) is None else state.objective.minimised(best),
        winner=winner.number,
        winner_ending=replayed_winner.state.name.lower(),
        winner_reason=str(replayed_winner.user_attrs.get(REASON, "")),
        left_out=tuple(left_out),
        cut=sum(1 for trial in trials if trial.user_attrs.get(REASON) == RECORD_ENDS),
    )


def recorded(rows: Sequence[TrialRow]) -> Table:
    """The reports of these trials as a table of learning curves with one curve for each trial.

    A milestone that a trial did not report repeats its last report before it. A metric is only at the milestones at
    which it was measured.
    """
    length = _length(rows)
    curves = {name: np.zeros((len(rows), length)) for name in ("tokens", "train_loss", "grad_norm", "val_loss")}
    metrics = sorted({name for row in rows for report in row.reports for name in report.scores} - {*curves, *CURVES})
    curves |= {name: np.full((len(rows), length), math.nan) for name in metrics}
    ends = {}
    for index, row in enumerate(rows):
        reports = {report.milestone: report for report in row.reports}
        last = row.reports[0]
        for milestone in range(1, length + 1):
            last = reports.get(milestone, last)
            values = (last.tokens, last.loss, last.grad_norm, math.nan if last.val_loss is None else last.val_loss)
            for name, value in zip(("tokens", "train_loss", "grad_norm", "val_loss"), values, strict=True):
                curves[name][index, milestone - 1] = value
            if milestone in reports:
                for name in metrics:
                    curves[name][index, milestone - 1] = last.scores.get(name, math.nan)
        if row.state is not TrialStatus.COMPLETE:
            ends[index] = row.reports[-1].milestone
        tokens = curves["tokens"][index]  # simulated time follows them, so they must rise at each milestone
        tokens[:] = np.maximum.accumulate(tokens + np.arange(length) * 1e-3)
    grid = {KEY: tuple(float(i) for i in range(len(rows)))}
    return Table("the sweep's reports", grid, (0,), {(i, 0): i for i in range(len(rows))}, curves, ends)


def _length(rows: Sequence[TrialRow]) -> int:
    return max(row.reports[-1].milestone for row in rows)
