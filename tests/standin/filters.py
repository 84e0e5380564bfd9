"""The filters and orders of `api.runs`, the part of MongoDB's language that W&B documents; and samples of a history."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.standin.model import Json, Run, iso

NAMES: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.id,
    "displayName": lambda run: run.display_name,
    "display_name": lambda run: run.display_name,
    "state": lambda run: str(run.state),
    "group": lambda run: run.group,
    "jobType": lambda run: run.job_type,
    "job_type": lambda run: run.job_type,
    "tags": lambda run: run.tags,
    "createdAt": lambda run: iso(run.created),
    "created_at": lambda run: iso(run.created),
    "heartbeatAt": lambda run: iso(run.heartbeat),
    "heartbeat_at": lambda run: iso(run.heartbeat),
    "sweep": lambda run: run.sweep,
}


class UnknownFilter(ValueError):
    """A word that this part of the language does not have."""


def matches(run: Run, wanted: dict[str, Any]) -> bool:
    return all(_clause(run, key, value) for key, value in wanted.items())


def _clause(run: Run, key: str, value: Any) -> bool:
    match key:
        case "$and":
            return all(matches(run, one) for one in value)
        case "$or":
            return any(matches(run, one) for one in value)
        case "$not":
            return not matches(run, value)
        case _ if key.startswith("$"):
            raise UnknownFilter(key)
    found = field(run, key)
    if isinstance(value, dict) and any(word.startswith("$") for word in value):
        return all(_compare(found, word, operand) for word, operand in value.items())
    return bool(value in found if isinstance(found, list) else found == value)


def _compare(found: Any, word: str, operand: Any) -> bool:
    many = found if isinstance(found, list) else [found]
    match word:
        case "$eq":
            return operand in many
        case "$ne":
            return operand not in many
        case "$in":
            return any(one in operand for one in many)
        case "$nin":
            return not any(one in operand for one in many)
        case "$exists":
            return (found is not None) == bool(operand)
        case "$regex":
            return isinstance(found, str) and re.search(operand, found) is not None
        case "$not":
            return not all(_compare(found, inner, value) for inner, value in operand.items())
        case "$gt" | "$gte" | "$lt" | "$lte":
            return found is not None and _order(found, word, operand)
    raise UnknownFilter(word)


def _order(found: Any, word: str, operand: Any) -> bool:
    return bool(
        {"$gt": found > operand, "$gte": found >= operand, "$lt": found < operand, "$lte": found <= operand}[word]
    )


def field(run: Run, key: str) -> Any:
    """A run's value under a filter's name: `config.lr`, `config.lr.value`, `summary_metrics.loss`, `state` …"""
    head, _, rest = key.partition(".")
    if head == "config":
        return _inside(run.config, rest.removesuffix(".value"))
    if head in {"summary", "summary_metrics", "summaryMetrics"}:
        return _inside(run.summary, rest)
    if key not in NAMES:
        raise UnknownFilter(key)
    return NAMES[key](run)


def _inside(values: dict[str, Any], path: str) -> Any:
    if path in values:
        return values[path]
    head, _, rest = path.partition(".")
    inner = values.get(head)
    return _inside(inner, rest) if rest and isinstance(inner, dict) else None


def ordered(runs: list[Run], order: str) -> list[Run]:
    """`+created_at` and the like; the default is the oldest first, runs without the value last."""
    key = order.lstrip("+-") or "created_at"
    if key in {"created_at", "createdAt"}:
        return sorted(runs, key=lambda run: run.created, reverse=order.startswith("-"))
    having = [run for run in runs if field(run, key) is not None]
    having.sort(key=lambda run: field(run, key), reverse=order.startswith("-"))
    return having + [run for run in runs if field(run, key) is None]


def sampled(run: Run, spec: Json) -> list[Json]:
    """Rows that have all the keys, evenly thinned to `samples`; `maxStep` counts as inside."""
    keys = spec.get("keys") or []
    low, high = spec.get("minStep"), spec.get("maxStep")
    rows = [
        {key: row[key] for key in keys} if keys else row
        for row in run.history
        if all(key in row for key in keys)
        and (low is None or row["_step"] >= low)
        and (high is None or row["_step"] <= high)
    ]
    count = int(spec.get("samples", 500))
    return rows if len(rows) <= count else [rows[index * len(rows) // count] for index in range(count)]
