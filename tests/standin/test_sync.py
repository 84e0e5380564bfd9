"""Offline runs, uploaded later by `wandb sync`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.standin.plugin import environment
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


def offline(wandb_here: Any, losses: list[float], exit_code: int, **more: Any) -> Path:
    """An offline run's directory."""
    run = wandb_here.init(project="p", id="one", mode="offline", config={"lr": 0.1}, group="sweep", **more)
    for loss in losses:
        run.log({"loss": loss})
    directory = Path(run.dir).parent
    run.finish(exit_code=exit_code)
    return directory


def sync(standin: StandIn, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wandb", "sync", *words]
    return subprocess.run(command, env=environment(standin), capture_output=True, text=True, check=False)


def test_an_offline_run_tells_nobody_until_it_is_synced(standin: StandIn, wandb_here: Any) -> None:
    directory = offline(wandb_here, [3.0, 2.0], 1)
    assert standin.runs == {}
    assert standin.counted("UpsertBucket") == 0
    done = sync(standin, str(directory))
    assert done.returncode == 0, done.stderr
    told = standin.runs["team/p/one"]
    assert [row["loss"] for row in told.history] == [3, 2]
    assert (told.state, told.config, told.group) == ("failed", {"lr": 0.1}, "sweep")


def test_a_second_offline_part_of_the_same_run(standin: StandIn, wandb_here: Any) -> None:
    first = offline(wandb_here, [3.0, 2.0], 1)
    second = offline(wandb_here, [1.0], 0, resume="allow")
    assert first != second
    for directory in (first, second):
        done = sync(standin, str(directory))
        assert done.returncode == 0, done.stderr
    told = standin.runs["team/p/one"]
    assert [(row["_step"], row["loss"]) for row in told.history] == [(0, 3), (1, 2), (2, 1)]
    assert told.state == "finished"


def test_what_was_synced_is_skipped(standin: StandIn, wandb_here: Any) -> None:
    directory = offline(wandb_here, [3.0, 2.0], 0)
    assert sync(standin, str(directory)).returncode == 0
    assert sync(standin, str(directory)).returncode == 0
    told = standin.runs["team/p/one"]
    assert [row["loss"] for row in told.history] == [3, 2]
    assert told.starts == 1
