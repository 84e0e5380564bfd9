"""What `sweep plan` shows."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweep.report.plan import Plan, plan_view
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.probe import DataProbe


@pytest.fixture(scope="module")
def plan() -> Plan:
    words = ["experiment=demo", "space.dataset.split=choice('[/a]','[b]')"]
    data = DataProbe(rows=512, validation_rows=64, trial_rows=512, trial_tokens=1000, tokens_per_second=10.0)
    return Plan(
        settings=freeze(compose_config(words), "s", Path()).settings,
        samples=({"dataset.split": "[/a]", "model.lora_rank": 4},),
        workers=2,
        data=data,
        unknown="",
        tokens=24_000,
        seconds=1200.0,
        preview="a [/command]",
    )


def shown(plan: Plan, **changes: Any) -> str:
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(plan_view(dataclasses.replace(plan, **changes)))
    return console.export_text()


def test_nothing_that_a_user_names_is_parsed_as_markup(plan: Plan) -> None:
    text = shown(plan)
    for word in ("choice([/a], [b])", "[/a]", "a [/command]"):
        assert word in text


def test_the_budget_in_tokens_and_time(plan: Plan) -> None:
    text = shown(plan)
    assert "at most 24,000; pruning saves some of them" in text
    assert "at most about 20:00 at 10 tokens/s per worker" in text
    assert "each trial trains on 512, about 1,000 label tokens" in text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokens": None, "seconds": None}, "no limit, at 10 tokens/s per worker"),
        ({"data": None, "tokens": None, "seconds": None, "unknown": "no data"}, "not measured: no data"),
        ({"data": None, "tokens": None, "seconds": None, "unknown": "no data"}, "refused: no data"),
        ({"data": None, "tokens": None, "seconds": None}, "not measured, because of --no-measure"),
    ],
)
def test_what_is_unknown_says_why(plan: Plan, changes: dict[str, Any], word: str) -> None:
    assert word in shown(plan, **changes)


def test_data_that_other_machines_have_are_unknown(plan: Plan) -> None:
    objective = dataclasses.replace(plan.settings.objective, milestone_tokens=100)
    settings = dataclasses.replace(plan.settings, objective=objective)
    text = shown(plan, settings=settings, data=None, tokens=None, seconds=None, unknown="no data")
    assert "unknown here: no data" in text
