"""Numbers, hyperparameters and learning curves of a sweep as short texts, and the order in which trials are shown.

Invariant: the texts are plain. A caller that prints them as Rich markup or as HTML must escape them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.model.objectives import Objective
from sweep.model.states import TrialStatus
from sweep.model.summary import TrialRow
from trainer.shortening import short_list, short_text

BLOCKS = "▁▂▃▄▅▆▇█"
ABBREVIATIONS = {"gradient_accumulation_steps": "accum"}


def json_text(value: Any) -> str:
    """A value as JSON that every reader takes: NaN and the infinities, which JSON lacks, are null.

    A value of a type that JSON lacks is its text; a mapping of such a type is an object.
    """
    return json.dumps(_without_nan(value), default=str, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The last `width` finite values as block characters, scaled from their lowest to their highest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, span = min(shown) / 2, max(shown) / 2 - min(shown) / 2  # halves: the difference of two floats may overflow
    return "".join(BLOCKS[round((value / 2 - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in shown)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash if it is None or NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03, or as 2:03 below an hour."""
    if not math.isfinite(seconds):
        return "∞" if seconds > 0 else "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Column names by key: the last part of the key if that is unique, else the whole key."""
    last_parts = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last_parts.values())
    unique = {key: name if counts[name] == 1 else key for key, name in last_parts.items()}
    return {key: ABBREVIATIONS.get(name, name) for key, name in unique.items()}


def param(value: Any, key: str = "") -> str:
    """A hyperparameter's value as a short text; of a component's dotted path, the last name."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str) and key.endswith("_component_") and re.fullmatch(r"\w+(\.\w+)+", value):
        return value.rpartition(".")[2]
    return short_list([str(item) for item in value]) if isinstance(value, list) else short_text(str(value))


def params_text(params: Mapping[str, Any]) -> str:
    """Hyperparameters on one line, as `name=value`."""
    names = short_keys(list(params))
    return " ".join(f"{names[key]}={param(value, key)}" for key, value in params.items())


def scores_text(scores: Mapping[str, float]) -> str:
    """An evaluation's scores on one line."""
    return "  ".join(f"{name} {number(value)}" for name, value in scores.items())


def ranked(rows: Sequence[TrialRow], objective: Objective) -> list[TrialRow]:
    """Trials with the complete ones first, best to worst, then the others by their last reported value."""

    def order(row: TrialRow) -> tuple[bool, float]:
        return row.state is not TrialStatus.COMPLETE, math.inf if row.value is None else objective.minimised(row.value)

    return sorted(rows, key=order)


def curve(row: TrialRow, metric: str) -> list[float]:
    """The objective at each milestone of a trial, without the milestones that have no value."""
    return [value for report in row.reports if not math.isnan(value := report.value(metric))]
