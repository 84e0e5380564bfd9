"""The unmodified wandb client tells the stand-in of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize(("overwrites", "losses"), [(False, [3, 2, 1]), (True, [1])])
def test_a_run_begun_again_without_resume(
    standin: StandIn, wandb_here: Any, overwrites: bool, losses: list[float]
) -> None:
    """W&B's documentation says that it is overwritten; the client takes what it logs for a continuation."""
    standin.limits.overwrites = overwrites
    for some in ([3.0, 2.0], [1.0]):
        run = wandb_here.init(project="p", id="one")
        for loss in some:
            run.log({"loss": loss})
        run.finish()
    assert [row["loss"] for row in standin.runs["team/p/one"].history] == losses
    assert standin.runs["team/p/one"].resumed == 1


def test_what_is_not_there_cannot_be_resumed(standin: StandIn, wandb_here: Any) -> None:
    """The process that tried cannot use the id any more: its service takes the run for one that is in use."""
    with pytest.raises(wandb_here.errors.UsageError, match="does not exist"):
        wandb_here.init(project="p", id="one", resume="must")
    with pytest.raises(Exception, match="in use"):
        wandb_here.init(project="p", id="one", resume="allow")
    wandb_here.init(project="p", id="two", resume="allow").finish()
    assert [(run.id, run.starts) for run in standin.runs.values()] == [("two", 1)]


def test_a_wrong_key_is_refused(standin: StandIn, wandb_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(wandb_here.errors.CommError, match="not logged in"):
        wandb_here.init(project="p", id="one")
    assert standin.runs == {}


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
