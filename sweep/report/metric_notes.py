"""What a person must know of the metrics of a sweep: the base's scores, what failed, and what looks wrong.

Invariants: pure; from the rows alone. A text that a trial wrote is made harmless for a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sweep.model.summary import TrialRow
from trainer.contract import Metric
from trainer.names import harmless
from trainer.shortening import short_text

# Trials that have measured a metric, all as 0, after which it is said: its extraction is then usually wrong.
ZERO_TRIALS = 3
LONGEST_REASON = 300
SCORED = ("generate", "command", "lm_eval")


def base_scores(rows: Iterable[TrialRow]) -> dict[str, float]:
    """The metrics of the base without an adapter, by name; the first trial that measured one counts."""
    scores: dict[str, float] = {}
    for row in rows:
        for report in row.reports:
            scores = {**report.base_scores, **scores}
    return scores


def problems_of(rows: Sequence[TrialRow], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """A sentence for each trial and metric whose last measurement failed, and for each metric that is 0 everywhere."""
    problems = []
    for row in rows:
        last: dict[str, tuple[int, str]] = {}
        for report in row.reports:
            last = {name: problem for name, problem in last.items() if name not in report.scores}
            last |= {name: (report.milestone, reason) for name, reason in report.problems.items()}
        for name, (milestone, reason) in last.items():
            text = f"trial {row.number}: {name} could not be measured at milestone {milestone}: {reason}"
            problems.append(harmless(short_text(text, LONGEST_REASON)))
    zeros = ((name, zero_trials(name, rows)) for name in scored_names(metrics))
    return (*problems, *(zero_text(name, count) for name, count in zeros if count))


def scored_names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The metrics that score what the model does; 0 everywhere is then suspicious."""
    return tuple(metric.name for metric in metrics if metric.source in SCORED)


def zero_trials(metric: str, rows: Iterable[TrialRow]) -> int:
    """How many trials have measured a metric, if at least `ZERO_TRIALS` have and all of them only ever 0; else 0."""
    values = [[r.scores[metric] for r in row.reports if metric in r.scores] for row in rows]
    measured = [of_trial for of_trial in values if of_trial]
    is_zero = all(value == 0 for of_trial in measured for value in of_trial)
    return len(measured) if is_zero and len(measured) >= ZERO_TRIALS else 0


def zero_text(metric: str, trials: int) -> str:
    """What is said of a metric that is 0 in every trial."""
    return (
        f"{metric} is 0 in all {trials} trials that have measured it: then what is taken from an answer, or compared "
        "with it, is usually wrong; `sweep report` shows answers beside their references"
    )
