"""What the controller asks of W&B, and trials tell it, while the server answers late: the client's own calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweep.errors import RetryLater
from sweep.queues.launch.api import Push
from sweep.queues.launch.runs import Runs
from sweep.queues.launch.section import LaunchQueue
from sweep.queues.launch.wandb_api import make_api
from sweep.tracking import client
from sweep.tracking.runs import WandbLocation
from tests.standin.faults import Fault
from tests.standin.plugin import standin, wandb_here
from tests.standin.server import StandIn
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    REPORTS_KEY,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    Tracking,
    TrialSpec,
)
from trainer.room import Room
from trainer.tracking.scores import upload_scores
from trainer.tracking.tracker import Tracker

__all__ = ["standin", "wandb_here"]  # fixtures
pytestmark = pytest.mark.slow

LATE_SECONDS = 0.5


def test_late_answers_cost_time_and_double_nothing(
    standin: StandIn,
    wandb_here: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb_here.Api().create_run_queue("lab", "local-container", entity="team")
    run = wandb_here.init(
        project="p", id="one", config={"sweep": {"worker": "w0001", "trial": 0}}, settings={"silent": True}
    )
    queue = LaunchQueue(name="lab", resource="local-container", docker_image="image:1", prioritization=False)
    api = make_api(queue, WandbLocation("team", "p", "s"), "")
    looks = Runs(api, 0.0)
    looks.want("trials", ["one", "two"])
    with standin.faults.during(Fault(None, delay=LATE_SECONDS)) as late:
        item = api.push(Push("two", "w0002", {JOB_KEY: {"worker": "w0002"}}))
        assert api.item_state(item) == "pending"
        looks.look()
        assert looks.observed["one"].state == "running"
        assert looks.observed["one"].sweep == {"worker": "w0001", "trial": 0}
        api.stop("one", StopCause.PRUNED)
    assert late.hits >= 5
    assert [item.spec["run_id"] for item in standin.items] == ["two"]
    assert len(standin.runs["team/p/one"].stop_requests) == 1
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 1)
    impatient = Runs(make_api(queue, WandbLocation("team", "p", "s"), ""), 0.0)
    impatient.want("trials", ["one"])
    with standin.faults.during(Fault(None, "Runs", delay=3.0, count=1)), pytest.raises(RetryLater, match="in time"):
        impatient.look()
    assert (impatient.looks, impatient.failures) == (0, 1), "so that no beat counts as missed"
    impatient.look()
    assert impatient.observed["one"].tags == ("stop:pruned",)
    run.finish()


def test_attempts_that_follow_at_once_lose_nothing_of_each_other(
    standin: StandIn, wandb_here: Any, tmp_path: Path
) -> None:
    """A paused trial goes on, and a complete one is judged, while the client before still sends its last words."""
    tracking = Tracking("s-1", "online", {"entity": "team", "project": "p"})
    room = Room(tmp_path)
    paused = Outcome(OutcomeKind.STOPPED, "others promise more", cause=StopCause.INTERRUPTED)
    with standin.faults.during(Fault(None, "file_stream", delay=1.0)):
        for attempt, outcome in ((1, paused), (2, Outcome(OutcomeKind.COMPLETED))):
            spec = TrialSpec("s", 1, attempt, "w0001", {}, milestone_tokens=10, tracking=tracking)
            room.attempt(1, attempt).path.mkdir(parents=True)
            tracker = Tracker(room, spec, tracking)
            tracker.report(
                Report(attempt, attempt, attempt * 10, 0, 2.9, 1.5, 1e-3, 100.0, 0.5, val_loss=3.0 - attempt)
            )
            tracker.close(outcome)
        upload_scores(tracking, room.attempt(1, 2), {"loss": 0.5})
        assert tracker.wait(60)
    run = standin.runs["team/p/s-1"]
    assert (run.state, run.starts) == ("finished", 3)
    assert {key: run.summary.get(key) for key in ("val_loss", "milestone", "trial/state", "eval/loss")} == {
        "val_loss": 1.0,
        "milestone": 2,
        "trial/state": "complete",
        "eval/loss": 0.5,
    }
    assert [row["milestone"] for row in run.history] == [1, 2]


def test_what_a_controller_tells_a_run_is_all_that_changes(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    """The job reports its end, and a person tags its run, between the controller's last look and its stop."""
    api = make_api(LaunchQueue(), WandbLocation("team", "p", "s"), "")
    quick = {"silent": True, "console": "off", "x_file_stream_transmit_interval": 1}
    config = {"sweep": {"worker": "w0001"}, "kept": 1}
    run = wandb_here.init(project="p", id="one", dir=str(tmp_path), config=config, settings=quick)
    run.summary.update({REPORTS_KEY: "one"})
    standin.wait(lambda it: it.runs["team/p/one"].summary.get(REPORTS_KEY) == "one")
    assert api.runs(["one"])["one"].summary[REPORTS_KEY] == "one"
    run.summary.update({REPORTS_KEY: "one, two", OUTCOME_KEY: "completed"})
    run.config.update({"late": 2})
    run.finish()
    standin.runs["team/p/one"].tags = ["mine"]
    api.stop("one", StopCause.PAUSED)
    api.stop("one", StopCause.PRUNED)
    api.configure("one", {JOB_KEY: {"inbox": []}})
    found = standin.runs["team/p/one"]
    assert {key: found.summary.get(key) for key in (REPORTS_KEY, OUTCOME_KEY)} == {
        REPORTS_KEY: "one, two",
        OUTCOME_KEY: "completed",
    }
    assert found.tags == ["mine", "stop:pruned"]
    values = {key: found.wire_config[key]["value"] for key in ("sweep", "kept", "late", JOB_KEY)}
    assert values == {**config, "late": 2, JOB_KEY: {"inbox": []}}
    assert (len(found.stop_requests), found.starts) == (2, 1)
    api.stop("none", StopCause.PRUNED)
