"""A Launch queue's section: what fits together, and its template variables."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.config.settings import read_queue
from sweep.errors import ConfigError
from sweep.queues.launch.section import LaunchQueue
from sweep.queues.launch.template import variables_in
from sweep.tracking.runs import wandb_location
from sweep.wiring.compose import compose_config, freeze
from tests.helpers.launch_templates import fill_in, values_of

TEMPLATE = {
    "limits": {"gpu": "{{gpus}}", "memory": "{{ memory }}"},
    "image": "${image_uri}",
    "at": ["s3://{{bucket}}/x"],
}
VARIABLES = {
    "gpus": {"schema": {"type": "integer", "default": 1, "minimum": 1, "maximum": 8}},
    "memory": {"schema": {"type": "string", "default": "8Gi", "enum": ["8Gi", "16Gi"]}},
    "bucket": {"schema": {"type": "string"}},
}
WHOLE = {
    "kind": "launch",
    "resource": "kubernetes",
    "template": TEMPLATE,
    "template_variables": VARIABLES,
    "variables": {"bucket": "ours"},
}


def read(**changes: Any) -> LaunchQueue:
    queue = read_queue({**WHOLE, **changes})
    assert isinstance(queue, LaunchQueue)
    return queue


def test_a_variable_alone_keeps_its_type_and_what_is_the_agents_stays() -> None:
    filled = fill_in(TEMPLATE, values_of(read(variables={"bucket": "ours", "gpus": 2})))
    assert filled == {"limits": {"gpu": 2, "memory": "8Gi"}, "image": "${image_uri}", "at": ["s3://ours/x"]}
    assert sorted(variables_in(TEMPLATE)) == ["bucket", "gpus", "memory"]
    assert list(variables_in(filled)) == []


def test_one_job_for_each_trial_by_default() -> None:
    queue = LaunchQueue()
    assert (queue.trials_per_worker, queue.slots, queue.channel, queue.priority) == (1, 1, "room", 2)
    assert read_queue({"kind": "launch"}) == queue


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nam": "x"}, ["queue: there is no key nam", "did you mean name?"]),
        ({"name": ""}, ["queue.name= is not allowed", "1 to 64"]),
        ({"name": "a/b"}, ["queue.name=a/b", "without /"]),
        ({"resource": "ray"}, ["queue.resource=ray", "local-process", "kubernetes"]),
        ({"channel": "mqtt"}, ["queue.channel=mqtt", "room or wandb"]),
        ({"priority": 4}, ["queue.priority=4", "0 (critical)", "3 (low)"]),
        ({"max_jobs": 0}, ["queue.max_jobs=0", "-1 for no limit"]),
        ({"pending_seconds": 0}, ["queue.pending_seconds=0", "above 0"]),
        ({"query_seconds": 0}, ["queue.query_seconds=0", "above 0"]),
        ({"workers": None}, ["queue.workers=null", "queue.workers=4"]),
        ({"job": "e/p/job-a:latest", "docker_image": "a:1"}, ["queue.job and queue.docker_image are both set"]),
        ({"docker_image": "a:1", "resource": "local-process"}, ["local-process runs no image", "local-container"]),
        ({"resource_args": {"kubernetes": {}}, "variables": {"bucket": "a"}}, ["uses only one of them"]),
        ({"variables": {"bucket": "a", "gpu": 1}}, ["no key gpu", "did you mean gpus?"]),
        ({"variables": {"bucket": "a", "gpus": 9}}, ["queue.variables.gpus=9 is out of range", "1 to 8"]),
        ({"variables": {"bucket": "a", "gpus": "2"}}, ["queue.variables.gpus=2 must be of type integer"]),
        ({"variables": {"bucket": "a", "gpus": True}}, ["queue.variables.gpus=True must be of type integer"]),
        ({"variables": {"bucket": "a", "memory": "1Gi"}}, ["queue.variables.memory=1Gi", "8Gi, 16Gi"]),
        ({"variables": {}}, ["template_variables.bucket has no default", "set queue.variables.bucket"]),
        ({"template": {}}, ["template_variables.gpus does not occur in queue.template", "{{gpus}}"]),
        ({"template_variables": {}, "variables": {}}, ["queue.template uses {{bucket}}", "no entry"]),
        ({"template_variables": {"gpus": {"type": "integer"}}}, ["template_variables.gpus needs a schema"]),
        ({"template_variables": {"gpus": {"schema": {"type": "list"}}}}, ["template_variables.gpus needs a schema"]),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("word", ["wandb.project=LoRA", "queue.project=LoRA"])
def test_a_project_with_capitals_is_refused_since_the_agent_writes_it_small(word: str) -> None:
    with pytest.raises(ConfigError, match=r"wandb\.project=LoRA: .* use lora"):
        freeze(compose_config(["queue=launch_local_process", word]), "test")
    small = freeze(compose_config(["queue=launch_local_process", word.lower()]), "test").settings
    assert wandb_location(small).project == "lora"
