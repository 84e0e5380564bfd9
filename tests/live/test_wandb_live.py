"""The calls that we rely on, against a real server. They run when `WANDB_API_KEY` and `SWEEP_LIVE_ENTITY` are set:

    WANDB_API_KEY=… SWEEP_LIVE_ENTITY=my-team python -m pytest tests/live

They make a project `sweep-live` with a few runs, an artifact and a queue, and delete runs and queue again. The stand-in
(`tests/standin`) answers the same calls; where a test here fails and there passes, the stand-in is wrong.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.waiting import until

ENTITY = os.environ.get("SWEEP_LIVE_ENTITY", "")
PROJECT = "sweep-live"
LIVE = bool(ENTITY and os.environ.get("WANDB_API_KEY"))

pytestmark = pytest.mark.skipif(not LIVE, reason="WANDB_API_KEY and SWEEP_LIVE_ENTITY are not set")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb as module

    module.teardown()
    yield module
    module.teardown()


@pytest.fixture
def run_id(wandb: Any) -> Iterator[str]:
    """A name of this test's own, whose run is deleted."""
    name = f"live{uuid.uuid4().hex[:8]}"
    yield name
    api = wandb.Api()
    for run in api.runs(f"{ENTITY}/{PROJECT}", filters={"name": name}):
        run.delete()


def read(wandb: Any, run_id: str) -> Any:
    run = wandb.Api().run(f"{ENTITY}/{PROJECT}/{run_id}")
    run.load(force=True)
    return run


def begin(wandb: Any, run_id: str, **more: Any) -> Any:
    settings = wandb.Settings(x_file_stream_transmit_interval=1, **more)
    return wandb.init(entity=ENTITY, project=PROJECT, id=run_id, resume="allow", config={"lr": 0.1}, settings=settings)


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (1, "failed")])
def test_log_and_read_back(wandb: Any, run_id: str, code: int, state: str) -> None:
    run = begin(wandb, run_id)
    for step in range(3):
        run.log({"loss": 3.0 - step})
    run.finish(exit_code=code)
    until(lambda: read(wandb, run_id).state == state)
    until(lambda: len(read(wandb, run_id).history(keys=["loss"], pandas=False)) == 3)
    assert read(wandb, run_id).config == {"lr": 0.1}


def test_a_resumed_run_goes_on_where_it_was(wandb: Any, run_id: str) -> None:
    for losses in ([3.0, 2.0], [1.0]):
        run = begin(wandb, run_id)
        for loss in losses:
            run.log({"loss": loss})
        run.finish()
    until(lambda: len(list(read(wandb, run_id).scan_history(keys=["loss", "_step"]))) == 3)
    rows = list(read(wandb, run_id).scan_history(keys=["loss", "_step"]))
    assert [(row["_step"], row["loss"]) for row in rows] == [(0, 3), (1, 2), (2, 1)]


@pytest.mark.parametrize(("code", "states"), [(0, {"finished", "killed"}), (1, {"failed", "killed"})])
def test_a_stop_reaches_a_running_run(wandb: Any, run_id: str, code: int, states: set[str]) -> None:
    """Which of the two states a stopped run ends in, the stand-in does not know."""
    asked: list[bool] = []
    run = begin(wandb, run_id, stop_fn=lambda: asked.append(True))
    run.log({"loss": 1.0})
    until(lambda: read(wandb, run_id).state == "running")
    read(wandb, run_id).stop()
    until(lambda: bool(asked))
    run.finish(exit_code=code)
    until(lambda: read(wandb, run_id).state != "running")
    assert read(wandb, run_id).state in states


def test_an_adapter_with_its_aliases(wandb: Any, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(os.urandom(64))
    run = begin(wandb, run_id)
    artifact = wandb.Artifact("sweep-live-adapter", type="model", metadata={"seed": 1})
    artifact.add_file(str(tmp_path / "weights.bin"))
    run.log_artifact(artifact, aliases=["best"]).wait()
    run.finish()
    found = wandb.Api().artifact(f"{ENTITY}/{PROJECT}/sweep-live-adapter:best")
    assert (found.metadata["seed"], found.logged_by().id) == (1, run_id)


def test_a_push_waits_in_its_queue(wandb: Any) -> None:
    from wandb.sdk.launch import launch_add

    api = wandb.Api()
    name = f"sweep-live-{uuid.uuid4().hex[:6]}"
    queue = api.create_run_queue(name, "kubernetes", entity=ENTITY, prioritization_mode="V0", config={})
    try:
        said: dict[str, Any] = {"project": PROJECT, "entity": ENTITY, "queue_name": name, "priority": 2}
        item = launch_add(docker_image="example.invalid/trainer:1", resource="kubernetes", run_id="never", **said)
        assert item.state == "pending"
        item.delete()
    finally:
        queue.delete()
