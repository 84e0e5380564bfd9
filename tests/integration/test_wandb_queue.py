"""`sweep queue` and `sweep doctor` for a queue of Launch, through wandb's unmodified client, against the stand-in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.agent.config import AgentConfig

from sweep.cli import launch_queue
from sweep.cli.main import main
from sweep.config.settings import Settings
from sweep.errors import RetryLater, SweepError
from sweep.queues.launch.agent_config import cluster_objects
from sweep.queues.launch.agents import agents_field, agents_query
from sweep.queues.launch.connection import asking
from sweep.queues.launch.doctor import launch_checks
from sweep.queues.launch.job_artifact import stage_code
from sweep.queues.launch.section import LaunchQueue
from sweep.wiring.compose import Composed, compose_config, freeze
from tests.standin.model import Agent, Item, Queue
from tests.standin.operations.introspection import LISTS_AGENTS, named
from tests.standin.plugin import standin, wandb_here  # noqa: F401
from tests.standin.server import StandIn

LOCAL = "queue=launch_local_process"
KUBERNETES = "queue=launch_kubernetes"
NEEDED = [{"type": {"kind": "NON_NULL"}}]
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(
    wandb_here: Any,  # noqa: F811
    standin: StandIn,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Sweep:
    """`sweep queue` in this process, each configuration composed once; it never says a key."""
    monkeypatch.setattr(launch_queue, "compose_config", lambda words, _: words)
    monkeypatch.setattr(launch_queue, "freeze", lambda words, *_: Composed(settings_of(*words), ""))

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["queue", *words])
        said = capfd.readouterr()
        assert standin.key not in said.out + said.err
        return code, said.out, said.err

    return run


@cache
def settings_of(*words: str) -> Settings:
    return freeze(compose_config(words), "test").settings


def configured(*words: str) -> LaunchQueue:
    queue = settings_of(*words).queue
    assert isinstance(queue, LaunchQueue)
    return queue


def only(standin: StandIn) -> Queue:  # noqa: F811
    (queue,) = standin.queues.values()
    return queue


# --- create and show ----------------------------------------------------------------------------------------------


def test_create_makes_the_queue_once_and_then_only_what_has_changed(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    assert sweep("create", KUBERNETES) == (0, "team/sweep-kubernetes: created\n", "")
    made = only(standin)
    wished = configured(KUBERNETES)
    assert made.resource == "kubernetes"
    assert made.config == {"resource_args": {"kubernetes": wished.template}}
    assert made.template_variables == wished.template_variables
    assert made.prioritized
    first = made.config_id

    assert sweep("create", KUBERNETES) == (0, "team/sweep-kubernetes: it is as configured already\n", "")
    assert only(standin).config_id == first

    changed = ("queue.prioritization=false", "queue.template_variables.gpus.schema.maximum=4")
    code, said, _ = sweep("create", KUBERNETES, *changed)
    assert (code, said) == (0, "team/sweep-kubernetes: changed: template_variables, prioritization\n")
    assert not only(standin).prioritized
    assert only(standin).template_variables["gpus"]["schema"]["maximum"] == 4


def test_a_queue_of_another_resource_is_left_alone(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    sweep("create", KUBERNETES, "queue.name=ours")
    code, _, said = sweep("create", LOCAL, "queue.name=ours")
    assert code == 2
    assert "W&B has a queue team/ours already, for kubernetes; choose another queue.name" in said
    assert only(standin).resource == "kubernetes"


def test_show_says_what_w_and_b_has(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    code, said, _ = sweep(LOCAL)
    assert code == 0
    assert "# team/sweep: absent; create it with `sweep queue create queue=…`" in said
    assert "# job: team/sweep/job-sweep:latest is absent; create it with `sweep queue job queue=…`" in said
    assert yaml.safe_load(said)["resource"] == "local-process"  # what W&B has stands in comments

    sweep("create", LOCAL)
    add_item(standin)
    add_item(standin)
    add_agent(standin)
    code, said, _ = sweep("show", LOCAL, "queue.prioritization=false")
    assert "# team/sweep: local-process, differs in prioritization; `sweep queue create queue=…` changes it" in said
    assert "# items: 2 pending" in said
    assert "# agents: this server does not list them" in said
    with_agents(standin)
    assert "# agent: agent-001 on host: polling, last heartbeat " in sweep("show", LOCAL)[1]


def test_show_as_json(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    sweep("create", KUBERNETES)
    with_agents(standin)
    found = json.loads(sweep("show", KUBERNETES, "--json")[1])
    assert found["configured"]["resource"] == "kubernetes"
    seen = found["wandb"]
    assert (seen["entity"], seen["home"], seen["differs"]) == ("team", "team/sweep", [])
    assert seen["queue"]["template"] == found["configured"]["template"]
    assert (seen["job"], seen["agents"]) == (None, [])


def test_a_queue_that_is_not_launchs_is_shown_and_not_created(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    code, said, _ = sweep("queue=slurm")
    assert code == 0
    assert yaml.safe_load(said)["timeout_min"] == 240
    for action in ("create", "job", "agent"):
        code, _, said = sweep(action, "queue=local")
        assert code == 2
        assert "queue.kind=local has nothing in W&B; choose a Launch queue, e.g. queue=launch_local_process" in said
    assert standin.queues == {}


def test_an_action_that_does_not_exist(sweep: Sweep) -> None:
    code, _, said = sweep("make")
    assert code == 2
    assert "there is no action make; allowed: create, show, job, agent, automate" in said


# --- job ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_job_builds_the_trainers_code_once(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    assert sweep("job", LOCAL, "wandb.project=lora")[:2] == (0, "team/lora/job-sweep:latest\n# job-sweep:v0\n")
    assert "# job-sweep:v0" in sweep("job", LOCAL, "wandb.project=lora")[1]  # nothing has changed
    assert "# job: job-sweep:v0" in sweep("show", LOCAL, "wandb.project=lora")[1]
    code, said, _ = sweep("job", "queue=launch_docker", "queue.docker_image=registry.example/trainer:1")
    assert (code, said) == (0, "team/sweep/job-sweep-docker:latest\n# job-sweep-docker:v0\n")
    assert standin.runs == {} or all(run.job_type == "cli_create_job" for run in standin.runs.values())


def test_a_job_of_code_is_the_trainer_and_nothing_else(tmp_path: Path) -> None:
    stage_code(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trainer", "requirements.txt"}
    assert (tmp_path / "trainer" / "worker.py").is_file()
    assert list(tmp_path.rglob("__pycache__")) == []


def test_a_job_for_a_cluster_needs_an_image(sweep: Sweep) -> None:
    code, _, said = sweep("job", KUBERNETES)
    assert code == 2
    assert "build one from launch_queues/Dockerfile, push it, and set queue.docker_image" in said


@pytest.mark.slow
def test_a_job_that_wandb_does_not_make_is_told_in_its_words(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    standin.faults.answer(403, operation="UpsertBucket")
    code, _, said = sweep("job", LOCAL)
    assert code == 1
    assert "W&B created no job: " in said


# --- agent --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "cloud"),
    [
        ((LOCAL,), None),
        ((KUBERNETES,), None),
        (("queue=launch_sagemaker", "queue.variables={role: r, bucket: b}", "--region", "us-east-1"), "aws"),
        (("queue=launch_vertex", "queue.variables={bucket: b}", "--region", "europe-west4"), "gcp"),
    ],
)
def test_the_agents_configuration_is_one_that_it_takes(sweep: Sweep, words: tuple[str, ...], cloud: str | None) -> None:
    code, said, _ = sweep("agent", *words)
    assert code == 0
    assert "# wandb launch-agent --config launch-config.yaml" in said
    config = AgentConfig(**yaml.safe_load(said))
    wished = configured(*words[:2] if cloud else words)
    assert (config.entity, config.queues, config.max_jobs) == ("team", [wished.name], wished.max_jobs)
    assert (config.environment.type if config.environment else None) == cloud


def test_a_clouds_agent_needs_a_region(sweep: Sweep) -> None:
    code, _, said = sweep("agent", "queue=launch_vertex", "queue.variables={bucket: b}")
    assert code == 2
    assert "queue.resource=gcp-vertex needs a region for its agent; name it: --region NAME" in said


def test_an_agent_in_a_cluster_is_what_kubernetes_takes_and_has_its_key_from_a_secret(sweep: Sweep) -> None:
    import kubernetes_validate

    code, said, _ = sweep("agent", KUBERNETES, "--kubernetes", "--namespace", "ml")
    assert code == 0
    objects = list(yaml.safe_load_all(said))
    assert objects == cluster_objects(configured(KUBERNETES), "team", "ml", os.environ["WANDB_BASE_URL"])
    for made in objects:
        kubernetes_validate.validate(made, "1.36", strict=True)
        assert made["metadata"]["namespace"] == "ml"
    (container,) = objects[-1]["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry for entry in container["env"]}
    assert given["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "wandb-api-key-sweep", "key": "password"}
    assert "create secret generic wandb-api-key-sweep" in said
    assert sweep("agent", LOCAL, "--kubernetes")[0] == 2


@pytest.mark.slow
def test_the_unmodified_agent_starts_on_that_configuration(
    sweep: Sweep,
    standin: StandIn,  # noqa: F811
    tmp_path: Path,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    line = [sys.executable, "-m", "sweep.cli", "queue", "create", LOCAL]
    assert subprocess.run(line, env=environment, check=True, capture_output=True).stdout == b"team/sweep: created\n"
    config = tmp_path / "launch-config.yaml"
    config.write_text(sweep("agent", LOCAL)[1])
    line = [sys.executable, "-m", "wandb", "launch-agent", "--config", str(config)]
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        try:
            while not any(one.last_poll for one in standin.agents):
                assert agent.poll() is None
                time.sleep(0.1)
        finally:
            agent.kill()
    with_agents(standin)
    looked = doctor(LOCAL)
    assert "polling, last heartbeat" in looked["W&B agent"]


# --- automations --------------------------------------------------------------------------------------------------


def test_an_automation_is_made_once_and_changed_after(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    standin.add_webhook("ci")
    sweep("create", LOCAL)  # makes no project of runs: that begins with the first run
    project(standin, "team", "sweep")
    code, said, error = sweep("automate", LOCAL, "--webhook", "ci")
    assert (code, said, error) == (0, "created: sweep: alias best in project to ci\n", "")
    (made,) = standin.automations
    assert (made.event_type, made.scope_type, made.action_type) == ("ADD_ARTIFACT_ALIAS", "PROJECT", "GENERIC_WEBHOOK")
    assert "best" in str(made.event_filter)
    assert "${artifact_version_string}" in str(made.action)
    code, said, _ = sweep("automate", LOCAL, "--webhook", "ci")
    assert (code, said) == (0, "changed: sweep: alias best in project to ci\n")
    assert len(standin.automations) == 1


def test_slack_is_told_by_an_automation_too(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    standin.add_slack("#adapters")
    project(standin, "team", "sweep")
    code, said, error = sweep("automate", LOCAL, "--slack", "--name", "tell us", "--alias", "trial-3")
    assert (code, said, error) == (0, "created: tell us\n", "")
    (made,) = standin.automations
    assert (made.action_type, made.name) == ("NOTIFICATION", "tell us")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what W&B does at the event: --webhook NAME, or --slack"),
        (("--webhook", "cd"), "team has no webhook cd in W&B; allowed: ci; a team's admin adds one"),
        (("--slack",), "team has no Slack channel in W&B; a team's admin adds one"),
        (("--webhook", "ci", "--on", "version"), "--on version needs a collection"),
        (("--webhook", "ci", "--on", "version", "--collection", "a"), "no collection team/sweep/a of type model"),
    ],
)
def test_an_automation_that_cannot_be_made(
    sweep: Sweep,
    standin: StandIn,  # noqa: F811
    words: tuple[str, ...],
    said: str,
) -> None:
    standin.add_webhook("ci")
    project(standin, "team", "sweep")
    code, _, error = sweep("automate", LOCAL, *words)
    assert code == 2
    assert said in error
    assert standin.automations == []


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_no_key(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", "/nonexistent")
    code, _, said = sweep("create", LOCAL)
    assert code == 2
    assert said.startswith("sweep: no API key for W&B at http://127.0.0.1")
    assert "set WANDB_API_KEY, or run `wandb login`" in said


@pytest.mark.parametrize("key", ["z" * 40, "short"])
def test_a_wrong_key_is_refused_and_not_repeated(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    code, _, said = sweep("create", LOCAL)
    assert code == 2
    assert "does not accept the API key" in said
    assert key not in said


def test_an_entity_of_somebody_else(sweep: Sweep) -> None:
    code, _, said = sweep("create", LOCAL, "queue.entity=theirs")
    assert code == 2
    assert "queue.entity=theirs is none of yours; allowed: team, tester" in said


def test_another_project_for_queues(sweep: Sweep) -> None:
    code, _, said = sweep("create", LOCAL, "queue.project_queue=mine")
    assert code == 2
    assert "W&B's client creates queues in model-registry only" in said


def test_a_server_that_refuses(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    standin.faults.answer(403, operation="UpsertRunQueue")
    code, _, said = sweep("create", LOCAL)
    assert code == 1
    assert "refuses: " in said
    assert "Traceback" not in said


def test_a_server_that_does_not_answer(standin: StandIn) -> None:  # noqa: F811
    """What wandb says of both, told apart by knocking."""
    from wandb.errors import AuthenticationError, CommError

    unanswered = "Failed to execute API request: the service process is busy and did not respond in time."
    for kind in (CommError, AuthenticationError):
        with pytest.raises(RetryLater, match=r"answers no request.*429"), asking(standin.url):
            raise kind(unanswered)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RetryLater, match=r"cannot be reached.*WANDB_BASE_URL"), asking(url):
            raise CommError(unanswered)


@pytest.mark.slow
def test_a_server_that_is_down(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    with standin.outage():
        code, _, said = sweep("create", LOCAL)
    assert code == 1
    assert "cannot be reached" in said
    assert sweep("create", LOCAL)[0] == 0


# --- doctor -------------------------------------------------------------------------------------------------------


def doctor(*words: str) -> dict[str, str]:
    """What each look says, or `wrong: …`."""
    found = {}
    for name, look in launch_checks(settings_of(*words)):
        try:
            found[name] = look()
        except SweepError as error:
            found[name] = f"wrong: {error}"
    return found


def test_doctor_says_what_is_missing_one_after_the_other(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    found = doctor(LOCAL)
    assert found["W&B key"].startswith("accepted by http://127.0.0.1")
    assert found["W&B entity"] == "team"
    assert found["W&B queue"] == "wrong: there is no queue team/sweep; create it with `sweep queue create queue=…`"
    assert found["W&B agent"] == "wrong: not checked: there is no queue"
    assert found["W&B job"].startswith("wrong: there is no job team/sweep/job-sweep:latest; create it with")

    sweep("create", LOCAL)
    found = doctor(LOCAL)
    assert found["W&B queue"] == "team/sweep: local-process, no items"
    assert found["W&B agent"].startswith("this server does not list agents; no items")
    add_item(standin)
    found = doctor(LOCAL)
    assert found["W&B agent"].startswith("wrong: 1 items wait and none was ever taken, so no agent seems to poll")

    with_agents(standin)
    assert doctor(LOCAL)["W&B agent"].startswith("wrong: no agent polls team/sweep; start one: `sweep queue agent")
    agent = add_agent(standin)
    assert doctor(LOCAL)["W&B agent"].startswith("agent-001 on host: polling, last heartbeat ")
    agent.heartbeat -= 600
    assert "(the last was agent-001 on host: killed, last heartbeat 6" in doctor(LOCAL)["W&B agent"]
    agent.queues.clear()
    assert "no agent polls team/sweep; start one" in doctor(LOCAL)["W&B agent"]
    assert "differs in prioritization" in doctor(LOCAL, "queue.prioritization=false")["W&B queue"]
    assert doctor("queue=launch_docker", "queue.docker_image=a:1")["W&B job"].startswith("the image a:1")


def test_doctor_without_a_key_says_so_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", "/nonexistent")
    found = doctor(LOCAL)
    assert "no API key" in found.pop("W&B key")
    assert set(found.values()) == {"wrong: not checked: see the W&B key above"}


@pytest.mark.parametrize(
    ("schema", "query"),
    [
        ({}, None),
        ({"RunQueue": None, "Project": {"fields": []}, "Entity": None}, None),
        (
            {"RunQueue": {"fields": [{"name": "agents", "args": [], "type": named("LaunchAgent")}]}},
            "query LaunchAgents($entity: String!, $project: String!, $queue: String!) "
            "{ project(name: $project, entityName: $entity) { runQueue(name: $queue) { agents { name ",
        ),
        (
            {"Entity": {"fields": [{"name": "all", "args": [], "type": named("LaunchAgentConnection")}]}},
            "query LaunchAgents($entity: String!) { entity(name: $entity) { all { edges { node { name ",
        ),
        ({"Entity": {"fields": [{"name": "one", "args": NEEDED, "type": named("LaunchAgent")}]}}, None),
    ],
)
def test_which_field_lists_agents(schema: dict[str, Any], query: str | None) -> None:
    found = agents_field(schema)
    assert (found is None) == (query is None)
    if found is not None and query is not None:
        assert agents_query(found).startswith(query)


def test_a_server_that_does_not_tell_its_schema_says_nothing_of_agents(sweep: Sweep, standin: StandIn) -> None:  # noqa: F811
    sweep("create", LOCAL)
    standin.faults.answer(400, operation="LaunchAgentFields")
    assert doctor(LOCAL)["W&B agent"].startswith("this server does not list agents")


# --- what stands in the server ------------------------------------------------------------------------------------


def with_agents(standin: StandIn) -> None:  # noqa: F811
    standin._store.features.add(LISTS_AGENTS)


def add_agent(standin: StandIn) -> Agent:  # noqa: F811
    store = standin._store
    agent = Agent("a1", "agent-001", "team", [only(standin).id], "host", {}, "0.31.0", store.limits)
    store.agents[agent.id] = agent
    return agent


def add_item(standin: StandIn) -> None:  # noqa: F811
    queue, items = only(standin), standin._store.items
    items[str(len(items))] = Item(
        str(len(items)), f"{queue.entity}/{queue.project}/{queue.name}", {}, 2, time.time(), len(items)
    )


def project(standin: StandIn, entity: str, name: str) -> None:  # noqa: F811
    standin._store.project(entity, name)
