"""The unmodified `wandb launch-agent`: two agents on a queue, jobs as local processes, all that can become of an item.

An agent polls every ten seconds, so that everything happens in one scene, which the tests share.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.standin.model import Item, ItemState
from tests.standin.plugin import environment, here
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow

TRIAL = """
import os, sys, time, wandb
if os.environ["WANDB_RUN_ID"] == "dies":
    sys.exit("before init")
run = wandb.init(settings=wandb.Settings(finish_timeout=60))  # should its test have failed, it ends all the same
for step in range(1200 if run.id == "stopped" else 3):
    run.log({"loss": run.config["lr"] / (step + 1)})
    time.sleep(0.1)
run.finish(exit_code=3 if run.id == "fails" else 0)
"""
# In the order of their pushes, with their priorities.
PUSHED = {"low": 3, "medium": 2, "high": 1, "critical": 0, "fails": 2, "dies": 2, "stopped": 2}


@dataclass
class Scene:
    standin: StandIn
    agents: list[subprocess.Popen[bytes]]
    items: dict[str, Item]  # by run id
    alive: list[str] = field(default_factory=list)  # what was said of the agents while they polled


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("agents")
    with StandIn(place) as standin, here(standin) as wandb_here:
        wandb_here.Api().create_run_queue("lab", "local-process", entity="team", prioritization_mode="V0")
        make_job(standin, place)
        for run_id, priority in PUSHED.items():
            push(run_id, priority)
        push("jobless", 2, job="team/p/nothing:latest")
        standin.faults.answer(500, "popFromRunQueue", count=2)
        standin.faults.drop("LaunchAgent", count=1)
        agents = [agent(standin, place, index) for index in range(2)]
        try:
            yield play(Scene(standin, agents, {item.spec["run_id"]: item for item in standin.items}))
        finally:
            for one in agents:
                with suppress(ProcessLookupError):  # with the jobs that it left
                    os.killpg(one.pid, signal.SIGKILL)
                one.wait()


def make_job(standin: StandIn, place: Path) -> None:
    (place / "job").mkdir()
    (place / "job" / "trial.py").write_text(TRIAL)
    (place / "job" / "requirements.txt").write_text("wandb\n")
    words = ["-e", "team", "-p", "p", "-n", "trial", "-E", "python trial.py", "--runtime", "3.11", "code"]
    command = [sys.executable, "-m", "wandb", "job", "create", *words, str(place / "job")]
    subprocess.run(command, env=environment(standin), check=True, capture_output=True)


def push(run_id: str, priority: int, job: str = "team/p/trial:latest") -> None:
    from wandb.sdk.launch import launch_add
    from wandb.sdk.launch.errors import LaunchError

    said: dict[str, Any] = {
        "project": "p",
        "entity": "team",
        "queue_name": "lab",
        "resource": "local-process",
        "priority": priority,
    }
    entry = ["env", "-u", "WANDB_SERVICE", sys.executable, "trial.py"]
    try:
        launch_add(job=job, run_id=run_id, entry_point=entry, config={"overrides": {"run_config": {"lr": 0.5}}}, **said)
    except LaunchError:
        assert run_id == "jobless"  # it says so, after it has pushed


def agent(standin: StandIn, place: Path, index: int) -> subprocess.Popen[bytes]:
    words = ["launch-agent", "-q", "lab", "-e", "team", "-j", "5", "-l", str(place / f"agent-{index}.log")]
    with (place / f"agent-{index}.out").open("w") as out:
        env = environment(standin, WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="1")
        # a shell that runs the tests in its background has SIGINT ignored, which is inherited
        command = ["env", "--default-signal=INT", sys.executable, "-m", "wandb", *words]
        return subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=place, start_new_session=True
        )


def play(scene: Scene) -> Scene:
    """Until every item has come to its end; then one agent is interrupted, and the other dies. Neither says so."""
    standin = scene.standin
    standin.wait(lambda it: "team/p/stopped" in it.runs and bool(it.runs["team/p/stopped"].history), 240)
    standin.stop_run("team/p/stopped")
    begun = [run_id for run_id in PUSHED if run_id != "dies"]
    standin.wait(lambda it: all((run := it.runs.get(f"team/p/{one}")) and run.ended for one in begun), 240)
    standin.wait(lambda it: all(scene.items[one].state is ItemState.FAILED for one in ("dies", "jobless")), 240)
    scene.alive = [one.status for one in standin.agents]
    standin.limits.poll_expiry = 15.0
    scene.agents[0].send_signal(signal.SIGINT)
    scene.agents[1].kill()
    standin.wait(lambda it: all(one.status == "KILLED" for one in it.agents), 60)
    return scene


def test_every_run_ends_as_it_should(scene: Scene) -> None:
    states = {run_id: scene.standin.runs[f"team/p/{run_id}"].state for run_id in PUSHED if run_id != "dies"}
    finished = dict.fromkeys(["low", "medium", "high", "critical"], "finished")
    assert states == {**finished, "fails": "failed", "stopped": "killed"}
    assert "team/p/dies" not in scene.standin.runs
    assert scene.standin.runs["team/p/fails"].exit_code == 3
    assert all(run.starts == 1 for run in scene.standin.runs.values())


def test_the_specification_travels_in_the_config(scene: Scene) -> None:
    assert {run.config["lr"] for run in scene.standin.runs.values() if run.project == "p"} == {0.5}


def test_items_are_taken_once_and_by_priority(scene: Scene) -> None:
    """The agents ask by themselves, so that only the order of the leases is told."""
    leased = sorted(scene.items.values(), key=lambda item: item.leased or 0.0)
    assert [item.priority for item in leased] == sorted(item.priority for item in leased)
    assert {item.leased_by for item in leased} <= {one.id for one in scene.standin.agents}
    assert scene.standin.counted("ackRunQueueItem") == len(scene.items)


def test_an_item_says_whether_its_run_began_and_no_more(scene: Scene) -> None:
    """That a run has failed is told by its run; an item that was taken stays `CLAIMED`."""
    states = {run_id: item.state for run_id, item in scene.items.items()}
    failed = {run_id for run_id, state in states.items() if state is ItemState.FAILED}
    assert failed == {"dies", "jobless"}
    assert {state for run_id, state in states.items() if run_id not in failed} == {ItemState.CLAIMED}


def test_a_failed_item_says_why(scene: Scene) -> None:
    dies, jobless = scene.items["dies"].error, scene.items["jobless"].error
    assert dies is not None
    assert dies["message"] == "The submitted run was not successfully started"
    assert jobless is not None
    assert "nothing" in jobless["message"]


def test_agents_report_and_are_missed(scene: Scene) -> None:
    """An agent that is interrupted does not sign off in 0.31: that it is gone is told by its silence."""
    assert set(scene.alive) <= {"POLLING", "RUNNING"}
    assert all(one.last_poll is not None for one in scene.standin.agents)
    assert [one.status for one in scene.standin.agents] == ["KILLED", "KILLED"]
    assert "KILLED" not in {one.told_status for one in scene.standin.agents}


def test_the_agents_outlive_a_failing_server(scene: Scene) -> None:
    assert {line.fault for line in scene.standin.requests} == {"", "500", "dropped"}


def test_nothing_was_refused(scene: Scene) -> None:
    assert scene.standin.refused == []
