"""The metrics of simulated trials: recorded in the table, or made up from the loss.

No model answers anything here. What the table lacks is derived, so that a search for a metric can be tried:

- `generate`: each of the rows is right with probability e to the power of minus the loss, so that the metric is a
  binomial count over the rows; it is drawn from the table's row, the milestone and the metric's name.
- `validation`: the perplexity, the token accuracy (the same probability, without noise) and the bits per byte (of text
  with four bytes a token) of the loss.
- `run`: the seconds and the speed of the simulated worker, and a megabyte of adapter for each rank.

Invariants: pure; the same attempt of the same table measures the same. Only a metric that is due is in a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np

from sweep.config.metrics import SCORES
from sweep.queues.simulated.tables import COLUMNS, CURVES, Table
from trainer.contract import Metric, Report

BYTES_PER_TOKEN = 4.0
_SCORES = 3  # the stream of the draws, beside those of `draws`


def refusal(metric: Metric, table: Table) -> str:
    """Why a simulated trial cannot measure a metric; empty if it can."""
    if metric.name in table.curves:
        return ""
    if metric.source == "generate" and metric.options.get("score") not in SCORES:
        return "a simulated trial calls no function of yours"
    if metric.source == "run" and metric.options.get("measure") == "peak_memory_gib":
        return "a simulated trial needs no memory"
    if metric.source == "run" and metric.options.get("measure") == "adapter_megabytes":
        return "" if COLUMNS["rank"] in table.grid else f"the table has no {COLUMNS['rank']}"
    if metric.source not in ("generate", "validation", "run"):
        return f"a simulated trial has no source {metric.source}"
    return ""


def scores_of(
    metrics: Sequence[Metric], table: Table, row: int, report: Report, config: Mapping[str, object]
) -> dict[str, float]:
    """The metrics that are due in a report, by name.

    Args:
        row: of the table.
        config: the flat configuration of the trial.
    """
    scores = {}
    for metric in metrics:
        if not metric.due(report.milestone, report.final):
            continue
        if metric.name in table.curves:
            value = float(table.curves[metric.name][row, report.milestone - 1])
        else:
            value = _made_up(metric, report, row, config)
        if math.isfinite(value):
            scores[metric.name] = value
    return scores


def base_scores(metrics: Sequence[Metric], table: Table, report: Report) -> dict[str, float]:
    """The metrics of the base: of the largest loss of any trial at its first milestone."""
    losses = table.curves["val_loss" if table.has_validation else "train_loss"][:, 0]
    worst = float(losses[np.isfinite(losses)].max())
    derived = (m for m in metrics if m.source in ("generate", "validation") and m.name not in table.curves)
    return {metric.name: _of_loss(metric, worst, (-1, 0)) for metric in derived if report.milestone == 1}


def recorded_scores(table: Table, row: int, milestone: int) -> dict[str, float]:
    """The metrics that a table has besides the losses, at a milestone."""
    values = {name: float(table.curves[name][row, milestone - 1]) for name in table.curves if name not in CURVES}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _made_up(metric: Metric, report: Report, row: int, config: Mapping[str, object]) -> float:
    if metric.source == "run":
        match metric.options["measure"]:
            case "trained_seconds":
                return report.seconds
            case "tokens_per_second":
                return report.tokens_per_second
            case _:
                return float(config[COLUMNS["rank"]])  # type: ignore[arg-type]
    loss = report.loss if report.val_loss is None else report.val_loss
    return _of_loss(metric, loss, (row, report.milestone))


def _of_loss(metric: Metric, loss: float, key: tuple[int, int]) -> float:
    """A metric that follows from a loss, nats per token; NaN if the loss is not finite."""
    if not math.isfinite(loss):
        return math.nan
    share = math.exp(-max(0.0, loss))
    if metric.source == "generate":
        rows = int(metric.options["rows"])
        rng = np.random.default_rng([_SCORES, crc32(metric.name.encode()), key[0] + 1, key[1]])
        return float(rng.binomial(rows, share)) / rows
    match metric.options["measure"]:
        case "perplexity":
            return math.exp(min(loss, 700.0))
        case "token_accuracy":
            return share
        case _:
            return loss / math.log(2.0) / BYTES_PER_TOKEN
