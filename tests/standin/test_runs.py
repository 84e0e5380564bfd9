"""The unmodified wandb client tells the stand-in of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standin.plugin import here
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


def test_a_run_from_init_to_finish(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    (tmp_path / "torchtune.yaml").write_text("seed: 1\n")
    run = wandb_here.init(
        project="p",
        id="one",
        name="trial-1",
        group="sweep",
        job_type="train",
        tags=["lora"],
        config={"lr": 0.1, "model": {"rank": 8}},
    )
    run.save(tmp_path / "torchtune.yaml", base_path=tmp_path, policy="now")
    for step in range(3):
        run.log({"loss": 3.0 - step})
    run.config.update({"late": True})
    run.summary["verdict"] = "kept"
    run.finish(exit_code=0)
    told = standin.runs["team/p/one"]
    assert (told.state, told.exit_code, told.starts) == ("finished", 0, 1)
    assert (told.display_name, told.group, told.job_type, told.tags) == ("trial-1", "sweep", "train", ["lora"])
    assert told.config == {"lr": 0.1, "model": {"rank": 8}, "late": True}
    assert [(row["_step"], row["loss"]) for row in told.history] == [(0, 3), (1, 2), (2, 1)]
    assert told.summary["loss"] == 1
    assert told.summary["verdict"] == "kept"
    assert told.files["torchtune.yaml"] == b"seed: 1\n"
    assert b"late" in told.files["config.yaml"]


def test_several_runs_at_once_in_one_process(standin: StandIn, wandb_here: Any) -> None:
    runs = [wandb_here.init(project="p", id=f"run{index}", reinit="create_new") for index in range(3)]
    for step in range(2):
        for index, run in enumerate(runs):
            run.log({"loss": index + step})
    for index, run in enumerate(runs):
        run.finish(exit_code=index)
    told = standin.runs
    assert [told[f"team/p/run{index}"].state for index in range(3)] == ["finished", "failed", "failed"]
    assert [[row["loss"] for row in told[f"team/p/run{index}"].history] for index in range(3)] == [
        [0, 1],
        [1, 2],
        [2, 3],
    ]


@pytest.mark.parametrize("resume", ["allow", "must"])
def test_a_resumed_run_goes_on_where_it_was(standin: StandIn, wandb_here: Any, resume: str) -> None:
    first = wandb_here.init(project="p", id="one", config={"lr": 0.1})
    first.log({"loss": 3.0})
    first.log({"loss": 2.0})
    first.finish(exit_code=1)
    second = wandb_here.init(project="p", id="one", resume=resume)
    assert second.resumed
    second.log({"loss": 1.0})
    second.finish()
    told = standin.runs["team/p/one"]
    assert [(row["_step"], row["loss"]) for row in told.history] == [(0, 3), (1, 2), (2, 1)]
    assert (told.state, told.starts, told.resumed, told.config) == ("finished", 2, 1, {"lr": 0.1})


def test_what_is_not_there_cannot_be_resumed(standin: StandIn, wandb_here: Any) -> None:
    """The process that tried cannot use the id any more: its service takes the run for one that is in use."""
    with pytest.raises(wandb_here.errors.UsageError, match="does not exist"):
        wandb_here.init(project="p", id="one", resume="must")
    with pytest.raises(wandb_here.errors.CommError, match="in use"):
        wandb_here.init(project="p", id="one", resume="allow")
    wandb_here.init(project="p", id="two", resume="allow").finish()
    assert [(run.id, run.starts) for run in standin.runs.values()] == [("two", 1)]


def test_a_wrong_key_is_refused(standin: StandIn, wandb_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(wandb_here.errors.CommError, match="not logged in"):
        wandb_here.init(project="p", id="one")
    assert standin.runs == {}


def three(wandb_here: Any) -> None:
    for index, group in enumerate("aab"):
        run = wandb_here.init(project="p", id=f"run{index}", group=group, config={"lr": 0.1 * index}, tags=[group])
        for step in range(4):
            run.log({"loss": 10 * index + step, "only": 1} if step % 2 else {"loss": 10 * index + step})
        run.finish(exit_code=index % 2)


def test_what_was_told_is_read_back(standin: StandIn, wandb_here: Any) -> None:
    three(wandb_here)
    api = wandb_here.Api()
    run = api.run("team/p/run1")
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
def test_filters(_three: Any, filters: dict[str, Any], found: set[str]) -> None:
    assert {run.id for run in _three.runs("team/p", filters=filters)} == found


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An api on a server with three finished runs."""
    with StandIn(tmp_path_factory.mktemp("three")) as standin, here(standin) as wandb_here:
        three(wandb_here)
        yield wandb_here.Api()
        assert standin.refused == []


def test_pages_orders_and_histories_of_many(_three: Any) -> None:
    runs = _three.runs("team/p", order="-summary_metrics.loss", per_page=2)
    assert len(runs) == 3
    assert [run.id for run in runs] == ["run2", "run1", "run0"]
    rows = _three.runs("team/p", filters={"group": "a"}).histories(keys=["loss"])
    assert [(row["run_id"], row["loss"]) for row in rows] == [("run0", n) for n in range(4)] + [
        ("run1", 10 + n) for n in range(4)
    ]


def test_what_the_api_changes(standin: StandIn, wandb_here: Any) -> None:
    run = wandb_here.init(project="p", id="one", config={"lr": 0.1})
    run.log({"loss": 1.0})
    run.finish()
    read = wandb_here.Api().run("team/p/one")
    read.config["verdict"] = "pruned"
    read.tags = ["best"]
    read.notes = "why"
    read.update()
    read.summary.update({"eval/perplexity": 7.5})
    told = standin.runs["team/p/one"]
    assert told.config == {"lr": 0.1, "verdict": "pruned"}
    assert (told.tags, told.notes, told.starts, told.state) == (["best"], "why", 1, "finished")
    assert (told.summary["loss"], told.summary["eval/perplexity"]) == (1, 7.5)


def test_files_come_back(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    wandb_here.init(project="p", id="one").finish()
    (tmp_path / "scores.json").write_text('{"loss": 1}')
    run = wandb_here.Api().run("team/p/one")
    run.upload_file(str(tmp_path / "scores.json"), root=str(tmp_path))
    assert standin.runs["team/p/one"].files["scores.json"] == b'{"loss": 1}'
    run.file("scores.json").download(root=str(tmp_path / "back"))
    assert (tmp_path / "back" / "scores.json").read_text() == '{"loss": 1}'
    assert {"config.yaml", "scores.json"} <= {file.name for file in run.files()}
