"""What runs have told, read back with `wandb.Api`: all of these tests share three finished runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.standin.plugin import here
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


@dataclass
class Three:
    standin: StandIn
    api: Any


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with StandIn(tmp_path_factory.mktemp("three")) as standin, here(standin) as wandb_here:
        log_three(wandb_here)
        yield Three(standin, wandb_here.Api())
        assert standin.refused == []


def log_three(wandb_here: Any) -> None:
    for index, group in enumerate("aab"):
        run = wandb_here.init(project="p", id=f"run{index}", group=group, config={"lr": 0.1 * index}, tags=[group])
        for step in range(4):
            run.log({"loss": 10 * index + step, "only": 1} if step % 2 else {"loss": 10 * index + step})
        run.finish(exit_code=index % 2)


def test_what_was_told_is_read_back(_three: Three) -> None:
    run = _three.api.run("team/p/run1")
    assert (run.state, run.group, run.config, run.summary["loss"]) == ("failed", "a", {"lr": 0.1}, 13)
    assert run.lastHistoryStep == 3
    assert [row["loss"] for row in run.history(pandas=False)] == [10, 11, 12, 13]
    assert run.history(keys=["only"], pandas=False) == [{"_step": 1, "only": 1}, {"_step": 3, "only": 1}]
    assert [row["loss"] for row in run.scan_history()] == [10, 11, 12, 13]
    assert [row["_step"] for row in run.scan_history(keys=["only"])] == [1, 3]
    assert [row["loss"] for row in run.scan_history(min_step=1, max_step=3)] == [11, 12]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"run0", "run1", "run2"}),
        ({"group": "a"}, {"run0", "run1"}),
        ({"state": "finished"}, {"run0", "run2"}),
        ({"state": {"$in": ["failed", "crashed"]}}, {"run1"}),
        ({"name": {"$in": ["run0", "run2"]}}, {"run0", "run2"}),
        ({"$and": [{"group": "a"}, {"state": {"$ne": "finished"}}]}, {"run1"}),
        ({"$or": [{"group": "b"}, {"config.lr": 0.1}]}, {"run1", "run2"}),
        ({"summary_metrics.loss": {"$gt": 12}}, {"run1", "run2"}),
        ({"tags": "b"}, {"run2"}),
        ({"display_name": {"$regex": "^run[01]$"}}, {"run0", "run1"}),
    ],
)
def test_filters(_three: Three, filters: dict[str, Any], found: set[str]) -> None:
    assert {run.id for run in _three.api.runs("team/p", filters=filters)} == found


def test_histories_ask_for_each_run_and_summaries_do_not(_three: Three) -> None:
    """What a poll of many runs costs: `histories` one request a run, a list with its summaries one a page. A list that
    was asked for before is not asked for again, unless `flush` says so."""
    standin, api = _three.standin, _three.api
    api.flush()
    before = standin.counted()
    assert len(api.runs("team/p").histories(keys=["loss"])) == 12
    assert standin.counted() - before == 1 + 3
    before = standin.counted()
    len(api.runs("team/p"))
    assert standin.counted() == before
    api.flush()
    assert [run.summary["loss"] for run in api.runs("team/p", lazy=False)] == [3, 13, 23]
    assert standin.counted() - before == 1


def test_pages_orders_and_histories_of_many(_three: Three) -> None:
    runs = _three.api.runs("team/p", order="-summary_metrics.loss", per_page=2)
    assert len(runs) == 3
    assert [run.id for run in runs] == ["run2", "run1", "run0"]
    rows = _three.api.runs("team/p", filters={"group": "a"}).histories(keys=["loss"])
    assert [(row["run_id"], row["loss"]) for row in rows] == [("run0", n) for n in range(4)] + [
        ("run1", 10 + n) for n in range(4)
    ]
