"""Launch queues as `wandb.Api` and `launch_add` see them; the agent has its own tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.standin.model import ItemState
from tests.standin.plugin import environment, here
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
VARIABLES = {
    "gpus": {"schema": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}},
    "node": {"schema": {"type": "string", "enum": ["small", "large"]}},
}
CONFIG = {"spec": {"limits": {"nvidia.com/gpu": "{{gpus}}"}, "name": "pool-{{node}}", "run": "${run_id}"}}


def create(wandb_here: Any, **more: Any) -> Any:
    return wandb_here.Api().create_run_queue("gpu", "kubernetes", entity="team", config=CONFIG, **more)


def push(standin: StandIn, run_id: str = "one", **more: Any) -> Any:
    """By name of an image: needs no job artifact."""
    from wandb.sdk.launch import launch_add

    said = {"project": "p", "entity": "team", "queue_name": "gpu", "docker_image": "repo/trainer:1", "run_id": run_id}
    return launch_add(**{**said, "resource": "kubernetes", **more})


def test_a_queue_is_made_and_read(standin: StandIn, wandb_here: Any) -> None:
    create(wandb_here, prioritization_mode="V0", template_variables=VARIABLES)
    told = standin.queues["team/model-registry/gpu"]
    assert (told.resource, told.config, told.prioritized) == (
        "kubernetes",
        {"resource_args": {"kubernetes": CONFIG}},
        True,
    )
    read = wandb_here.Api().run_queue("team", "gpu")
    assert (read.type, read.prioritization_mode, read.id) == ("kubernetes", "V0", told.id)
    assert read.default_resource_config == told.config
    assert {variable["name"] for variable in read.template_variables} == {"gpus", "node"}
    assert read.items == []


def test_a_queue_exists_once(standin: StandIn, wandb_here: Any) -> None:
    create(wandb_here)
    with pytest.raises(Exception, match="gpu"):
        create(wandb_here)
    assert len(standin.queues) == 1


def test_a_queue_is_changed_and_deleted(standin: StandIn, wandb_here: Any) -> None:
    api = wandb_here.Api()
    create(wandb_here)
    api.upsert_run_queue(
        "gpu", CONFIG, "kubernetes", entity="team", prioritization_mode="V0", template_variables=VARIABLES
    )
    told = standin.queues["team/model-registry/gpu"]
    assert (told.prioritized, set(told.template_variables)) == (True, {"gpus", "node"})
    api.run_queue("team", "gpu").delete()
    assert standin.queues == {}


def test_a_push_fills_in_the_template_variables(standin: StandIn, wandb_here: Any) -> None:
    create(wandb_here, prioritization_mode="V0", template_variables=VARIABLES)
    config = {"overrides": {"run_config": {"lr": 0.1}}}
    item = push(standin, template_variables={"node": "large", "gpus": 2}, priority=0, config=config)
    told = standin.items[0]
    spec = told.spec["resource_args"]["kubernetes"]["spec"]
    assert spec == {"limits": {"nvidia.com/gpu": 2}, "name": "pool-large", "run": "${run_id}"}
    assert (told.priority, told.spec["run_id"], told.spec["overrides"]["run_config"]) == (0, "one", {"lr": 0.1})
    assert (item.id, item.state) == (told.id, "pending")
    assert [queued.id for queued in wandb_here.Api().run_queue("team", "gpu").items] == [told.id]
    item.delete()
    assert standin.items == []


@pytest.mark.parametrize(
    "values", [{}, {"node": "medium"}, {"node": "small", "gpus": 9}, {"node": "small", "other": 1}]
)
def test_a_wrong_template_variable_is_refused(_queue: StandIn, values: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="template variable"):
        push(_queue, template_variables=values)
    assert _queue.items == []


@pytest.fixture(scope="module")
def _queue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with StandIn(tmp_path_factory.mktemp("queue")) as standin, here(standin) as wandb_here:
        create(wandb_here, template_variables=VARIABLES)
        yield standin
        assert standin.refused == []


def test_a_queue_that_is_not_there(standin: StandIn, wandb_here: Any) -> None:
    from wandb.sdk.launch.errors import LaunchError

    with pytest.raises(LaunchError, match="Error adding run to queue"):
        push(standin)
    assert standin.items == []


def test_a_push_whose_answer_is_lost_is_pushed_twice(standin: StandIn, wandb_here: Any) -> None:
    """The client repeats it: who must not double a trial has to look for the run id among what was pushed."""
    create(wandb_here)
    standin.faults.drop("pushToRunQueueByName", count=1, acted=True)
    push(standin)
    assert [item.spec["run_id"] for item in standin.items] == ["one", "one"]


def test_a_lost_item(standin: StandIn, wandb_here: Any) -> None:
    create(wandb_here)
    item = push(standin)
    standin.lose_item(item.id)
    with pytest.raises(ValueError, match=r"Could not find|not found|no queue item|Unable"):
        assert item.state


def test_jobs_of_code_and_of_an_image(standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "trial.py").write_text("print('trial')\n")
    (tmp_path / "job" / "requirements.txt").write_text("wandb\n")
    command = [sys.executable, "-m", "wandb", "job", "create", "-e", "team", "-p", "p"]
    code = ["-n", "trial", "-E", "python trial.py", "--runtime", "3.11", "code", str(tmp_path / "job")]
    for words in (code, ["-n", "trial-image", "image", "repo/trainer:1"]):
        done = subprocess.run([*command, *words], env=environment(standin), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    told = standin.artifacts
    assert {name: found.type for name, found in told.items() if found.type == "job"} == {
        "team/p/trial:v0": "job",
        "team/p/trial-image:v0": "job",
    }
    code_job, image_job = (
        json.loads(standin.content(told[f"team/p/{name}:v0"], "wandb-job.json")) for name in ("trial", "trial-image")
    )
    assert code_job["source"]["entrypoint"] == ["python", "trial.py"]
    assert image_job["source"]["image"] == "repo/trainer:1"


def test_the_faster_agent_is_an_agent(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    """It fails the item of a job that is not there, as the unmodified one does."""
    from wandb.sdk.launch.errors import LaunchError

    wandb_here.Api().create_run_queue("lab", "local-process", entity="team")
    with pytest.raises(LaunchError, match="Unable to fetch job"):
        push(standin, queue_name="lab", docker_image=None, job="team/p/nothing:latest", resource="local-process")
    words = ["-q", "lab", "-e", "team", "-l", str(tmp_path / "agent.log")]
    command = [sys.executable, "-m", "tests.standin.fast_agent", *words]
    agent = subprocess.Popen(command, env=environment(standin), cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        standin.wait(lambda it: it.items[0].state is ItemState.FAILED, 120)
    finally:
        agent.kill()
        agent.wait()
    assert standin.agents[0].last_poll is not None
