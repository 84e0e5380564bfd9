"""The shipped Launch queues, taken through the unmodified runners of wandb's agent up to the call of the cloud's API.

Kubernetes objects are held against the Kubernetes API's own schemas, the PyTorchJob against the operator's own models,
the SageMaker request against AWS's service model. Template variables are filled in here as W&B's documentation says
that its server does; no server or cluster is asked.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import kubernetes_validate
import pytest
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape
from botocore.session import Session
from botocore.stub import ANY, Stubber
from botocore.validate import ParamValidator
from kubeflow.training import models as kubeflow
from wandb.sdk.launch._project_spec import LaunchProject
from wandb.sdk.launch.errors import LaunchError
from wandb.sdk.launch.registry.local_registry import LocalRegistry
from wandb.sdk.launch.runner import local_container
from wandb.sdk.launch.runner.sagemaker_runner import SageMakerRunner

from sweep.queues.launch.section import LaunchQueue
from sweep.queues.launch.template import variables_in
from sweep.resources import launch_queues_dir
from sweep.wiring.compose import compose_config, freeze
from tests.helpers.launch_templates import fill_in, values_of

# What the runners import as they are loaded, and never come to use here: the SDKs of two more clouds.
SDKS = [
    "azure.containerregistry",
    "azure.core.exceptions",
    "azure.identity",
    "azure.storage.blob",
    "google",
    "google.api_core.exceptions",
    "google.auth.credentials",
    "google.auth.transport.requests",
    "google.cloud.compute_v1",
    "google.cloud.storage",
]
with patch.dict(sys.modules, {name: MagicMock() for name in SDKS}):
    from wandb.sdk.launch.runner import kubernetes_runner
    from wandb.sdk.launch.runner.vertex_runner import VertexRunner

KEY = "k" * 40
IMAGE = "registry.example/sweep-trainer:1"
ROLE = "arn:aws:iam::123456789012:role/sweep"
# The oldest and the newest Kubernetes whose schemas we hold templates against.
KUBERNETES = ("1.28", "1.36")
LAUNCHED = sorted(path.stem for path in launch_queues_dir().glob("launch_*.yaml"))
BESIDE = {
    "launch_sagemaker": (f"queue.variables={{role: '{ROLE}', bucket: ours}}",),
    "launch_vertex": ("queue.variables={bucket: ours}",),
}
API = SimpleNamespace(settings={"base_url": "https://wandb.example"}, api_key=KEY)
BACKEND = {"SYNCHRONOUS": True, "runner": {}}


@cache
def queue_of(name: str, *words: str) -> LaunchQueue:
    cfg = compose_config(["experiment=demo", f"queue={name}", *BESIDE.get(name, ()), *words])
    queue = freeze(cfg, "test").settings.queue
    assert isinstance(queue, LaunchQueue)
    return queue


def project(queue: LaunchQueue, config: dict[str, Any] | None = None, **words: Any) -> LaunchProject:
    """What the agent makes of a queue item."""
    spec = {
        "entity": "team",
        "project": "lora",
        "run_id": "sweep-w0003",
        "name": "sweep-w0003",
        "docker": {"docker_image": IMAGE},
        "resource": queue.resource,
        "resource_args": {queue.resource: fill_in(copy.deepcopy(queue.template), values_of(queue)) | words},
        "overrides": {"run_config": config or {"trial": 7}},
    }
    return LaunchProject.from_spec(spec, API)  # type: ignore[arg-type]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


# --- Kubernetes ---------------------------------------------------------------------------------------------------


class Cluster:
    """Takes what the runner would create."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.custom: list[dict[str, Any]] = []
        self.secrets: list[Any] = []

    async def context(self, *_: Any) -> tuple[None, Any]:
        return None, SimpleNamespace()

    async def nothing(self, *_: Any, **__: Any) -> None:
        return None

    async def create(self, _: Any, job: dict[str, Any], namespace: str) -> list[Any]:
        self.jobs.append(job)
        return [SimpleNamespace(metadata=SimpleNamespace(name="made", namespace=namespace))]

    async def create_custom(self, **words: Any) -> dict[str, Any]:
        self.custom.append(words)
        return {"metadata": {"name": "made"}}

    async def create_secret(self, _: str, secret: Any) -> Any:
        self.secrets.append(secret)
        return secret

    def run(self, launched: LaunchProject) -> None:
        runner = kubernetes_runner.KubernetesRunner(API, BACKEND, SimpleNamespace(), LocalRegistry())  # type: ignore[arg-type]
        asyncio.run(runner.run(launched, launched.image_name))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    runner: Any = kubernetes_runner
    client, monitor = runner.client, runner.LaunchKubernetesMonitor
    monkeypatch.setattr(runner, "get_kube_context_and_api_client", made.context)
    monkeypatch.setattr(runner.kubernetes_asyncio.utils, "create_from_dict", made.create)
    monkeypatch.setattr(monitor, "ensure_initialized", made.nothing)
    monkeypatch.setattr(monitor, "monitor_namespace", lambda *_, **__: None)
    monkeypatch.setattr(runner.KubernetesSubmittedRun, "wait", made.nothing)
    monkeypatch.setattr(runner.CrdSubmittedRun, "wait", made.nothing)
    monkeypatch.setattr(client.CustomObjectsApi, "create_namespaced_custom_object", made.create_custom)
    monkeypatch.setattr(client.CoreV1Api, "create_namespaced_secret", made.create_secret)
    return made


def as_text(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a server would fill them in that knows no types."""
    return {name: str(value) for name, value in values.items()}


def test_a_job_of_the_kubernetes_queue_is_one_that_kubernetes_takes(cluster: Cluster) -> None:
    queue = queue_of("launch_kubernetes", "+queue.variables={gpus: 2, node_pool: a100, memory: 64Gi}")
    cluster.run(project(queue))
    (job,) = cluster.jobs
    for version in KUBERNETES:
        kubernetes_validate.validate(job, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert "command" not in container  # so the image's entry point runs
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-nodepool": "a100"}
    assert [entry["key"] for entry in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    given = environment(container)
    assert given["WANDB_RUN_ID"] == "sweep-w0003"
    assert json.loads(given["WANDB_CONFIG"]) == {"trial": 7}
    assert given["WANDB_API_KEY"]["secretKeyRef"]["name"] == cluster.secrets[0].metadata.name
    assert KEY not in json.dumps(job)


def test_numbers_filled_in_as_text_are_taken_too(cluster: Cluster) -> None:
    queue = queue_of("launch_kubernetes")
    launched = project(queue)
    launched.resource_args = {"kubernetes": fill_in(copy.deepcopy(queue.template), as_text(values_of(queue)))}
    cluster.run(launched)
    kubernetes_validate.validate(cluster.jobs[0], KUBERNETES[-1], strict=True)
    assert cluster.jobs[0]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    "path", [("spec", "backofLimit"), ("spec", "template", "spec", "nodeSelectors"), ("spec", "template", "spc")]
)
def test_a_misspelt_key_would_be_seen(cluster: Cluster, path: tuple[str, ...]) -> None:
    cluster.run(project(queue_of("launch_kubernetes")))
    job = cluster.jobs[0]
    at = job
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match=path[-1]):
        kubernetes_validate.validate(job, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize(
    "unsafe",
    [
        {"securityContext": {"runAsUser": 0}},
        {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
        {"serviceAccountName": "admin"},
    ],
)
def test_what_the_queue_files_say_that_the_agent_refuses_it_does(cluster: Cluster, unsafe: dict[str, Any]) -> None:
    queue = queue_of("launch_kubernetes")
    launched = project(queue)
    launched.resource_args["kubernetes"]["spec"]["template"]["spec"] |= unsafe
    with pytest.raises(LaunchError, match=r"not permitted|manages"):
        cluster.run(launched)
    assert cluster.jobs == []


def test_a_pytorchjob_is_one_that_the_operator_takes(cluster: Cluster) -> None:
    cluster.run(project(queue_of("launch_kubeflow_pytorchjob", "+queue.variables={gpus: 4}")))
    (made,) = cluster.custom
    assert (made["group"], made["version"], made["plural"]) == ("kubeflow.org", "v1", "pytorchjobs")
    body = made["body"]
    check_model(body, "KubeflowOrgV1PyTorchJob")
    master = body["spec"]["pytorchReplicaSpecs"]["Master"]
    for version in KUBERNETES:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": body["metadata"], "template": master["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
    (container,) = master["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["image"] == IMAGE
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert environment(container)["WANDB_API_KEY"] == KEY  # in the clear, as the queue's file says


def test_a_misspelt_key_of_a_pytorchjob_would_be_seen(cluster: Cluster) -> None:
    cluster.run(project(queue_of("launch_kubeflow_pytorchjob")))
    body = cluster.custom[0]["body"]
    body["spec"]["runPolicy"]["backofLimit"] = 0
    with pytest.raises(AssertionError, match="backofLimit"):
        check_model(body, "KubeflowOrgV1PyTorchJob")
    del body["spec"]["runPolicy"]["backofLimit"]
    body["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = "one"
    with pytest.raises(AssertionError, match="replicas"):
        check_model(body, "KubeflowOrgV1PyTorchJob")


def check_model(value: Any, kind: str, at: str = "") -> None:
    """Hold plain data against a model of the operator's client; what is Kubernetes' own is held against its schemas."""
    if inner := re.fullmatch(r"dict\(str, (\w+)\)|list\[(\w+)\]", kind):
        children = value.items() if inner[1] else enumerate(value)
        for key, child in children:
            check_model(child, inner[1] or inner[2], f"{at}.{key}")
    elif kind.startswith("Kubeflow"):
        model = getattr(kubeflow, kind)
        names = {wire: name for name, wire in model.attribute_map.items()}
        assert set(value) <= set(names), f"{at}: {set(value) - set(names)}"
        model(**{names[key]: child for key, child in value.items()})  # refuses what is required and absent
        for key, child in value.items():
            check_model(child, model.openapi_types[names[key]], f"{at}.{key}")
    else:
        plain = {"str": str, "int": int, "bool": bool}.get(kind, dict)
        assert isinstance(value, plain), f"{at} is no {kind}: {value}"


# --- containers of the agent's machine ----------------------------------------------------------------------------


def docker_line(queue: LaunchQueue, **words: Any) -> list[str]:
    launched = project(queue, **words)
    runner = local_container.LocalContainerRunner(API, BACKEND, SimpleNamespace(), LocalRegistry())  # type: ignore[arg-type]
    options = runner._populate_docker_args(launched, IMAGE)
    return [str(word) for word in local_container.get_docker_command(IMAGE, {}, docker_args=options)]


def test_the_docker_queue_makes_a_line_that_runs_the_images_entry_point() -> None:
    line = docker_line(queue_of("launch_docker", "+queue.variables.gpus='device=1'"))
    assert " ".join(line) == f"docker run --rm --gpus device=1 --shm-size 8g --memory 32g {IMAGE}"


@pytest.mark.parametrize("unsafe", [{"volume": "/rooms:/rooms"}, {"network": "host"}])
def test_a_container_is_given_no_directory_and_no_network(unsafe: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="Unsupported resource_args"):
        docker_line(queue_of("launch_docker"), **unsafe)


# --- SageMaker ----------------------------------------------------------------------------------------------------


class Aws:
    """A session whose SageMaker client checks a request as the real one does, and sends nothing."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.session = Session()

    async def get_session(self) -> Any:
        return SimpleNamespace(client=self.client)

    async def get_partition(self) -> str:
        return "aws"

    def client(self, name: str) -> Any:
        if name != "sagemaker":
            return SimpleNamespace(get_caller_identity=lambda: {"Account": "123456789012"})
        client = self.session.create_client(
            name, region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
        )
        client.meta.events.register("provide-client-params.sagemaker.CreateTrainingJob", self._take)
        stub = Stubber(client)
        stub.add_response("create_training_job", {"TrainingJobArn": "arn:aws:sagemaker:us-east-1:1:training-job/a"})
        stub.add_response(
            "describe_training_job",
            {**DESCRIBED, "TrainingJobStatus": "Completed"},
            {"TrainingJobName": ANY},
        )
        stub.activate()
        return client

    def _take(self, params: dict[str, Any], **_: Any) -> None:
        self.asked.append(copy.deepcopy(params))


DESCRIBED = {
    "TrainingJobName": "a",
    "TrainingJobArn": "arn:aws:sagemaker:us-east-1:1:training-job/a",
    "ModelArtifacts": {"S3ModelArtifacts": "s3://a"},
    "SecondaryStatus": "Completed",
    "AlgorithmSpecification": {"TrainingInputMode": "File"},
    "ResourceConfig": {"VolumeSizeInGB": 1},
    "StoppingCondition": {},
    "CreationTime": 0,
}


def sagemaker_request(launched: LaunchProject) -> dict[str, Any]:
    aws = Aws()
    runner = SageMakerRunner(API, BACKEND, aws, LocalRegistry())  # type: ignore[arg-type]
    asyncio.run(runner.run(launched, launched.image_name))
    return aws.asked[0]


def test_a_sagemaker_request_is_one_that_aws_takes() -> None:
    spec = {"trial": {"text": "x" * 2000}}
    request = sagemaker_request(project(queue_of("launch_sagemaker"), spec))
    shape = aws_shape("CreateTrainingJob")
    assert ParamValidator().validate(request, shape).generate_report() == ""
    assert list(faults(request, shape)) == []
    assert request["RoleArn"] == ROLE
    assert request["TrainingJobName"] == "sweep-w0003"
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://ours/sweep"}
    assert request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert "ContainerEntrypoint" not in request["AlgorithmSpecification"]
    assert request["ResourceConfig"]["VolumeSizeInGB"] == 100
    shards = [value for name, value in sorted(request["Environment"].items()) if name.startswith("WANDB_CONFIG_")]
    assert len(shards) > 1  # AWS takes 512 characters a variable
    assert json.loads("".join(shards)) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [("InstanceType", "ml.g5.huge"), ("VolumeSizeInGB", "100"), ("InstanceKount", 1)],
)
def test_a_request_that_aws_would_refuse_is_seen(key: str, value: Any) -> None:
    request = sagemaker_request(project(queue_of("launch_sagemaker")))
    request["ResourceConfig"][key] = value
    shape = aws_shape("CreateTrainingJob")
    report = ParamValidator().validate(request, shape).generate_report()
    assert key in report + " ".join(faults(request, shape))


@pytest.mark.parametrize("needed", ["ResourceConfig", "StoppingCondition", "OutputDataConfig", "RoleArn"])
def test_what_the_sagemaker_queue_holds_the_runner_needs(needed: str) -> None:
    launched = project(queue_of("launch_sagemaker"))
    del launched.resource_args["sagemaker"][needed]
    with pytest.raises(LaunchError, match=needed):
        sagemaker_request(launched)


@cache
def aws_shape(operation: str) -> StructureShape:
    shape = Session().get_service_model("sagemaker").operation_model(operation).input_shape
    assert isinstance(shape, StructureShape)
    return shape


def faults(value: Any, shape: Shape, at: str = "") -> Iterator[str]:
    """What AWS would refuse and botocore does not look at: patterns, choices and longest lengths."""
    match shape:
        case StructureShape():
            for key in value.keys() & shape.members.keys():
                yield from faults(value[key], shape.members[key], f"{at}.{key}")
        case ListShape():
            for child in value:
                yield from faults(child, shape.member, at)
        case MapShape():
            for key, child in value.items():
                yield from faults(key, shape.key, at)
                yield from faults(child, shape.value, f"{at}.{key}")
        case StringShape():
            pattern = re.sub(
                r"\\p\{L\}|\\p\{Z\}|\\p\{N\}", r"\\w ", shape.metadata.get("pattern", "")
            )  # Java's classes
            if len(value) > shape.metadata.get("max", len(value)):
                yield f"{at} is too long"
            if pattern and not re.fullmatch(pattern, value):
                yield f"{at}={value} does not match {pattern}"
            if shape.enum and value not in shape.enum:
                yield f"{at}={value} is none of the choices"


# --- Vertex AI ----------------------------------------------------------------------------------------------------


class CustomJob:
    """What the runner hands to Vertex AI."""

    made: list[dict[str, Any]]

    def __init__(self, **words: Any) -> None:
        self.words = words
        self._gca_resource = SimpleNamespace(name="made")
        type(self).made.append(words)

    def run(self, **words: Any) -> None:
        type(self).made.append(words)


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> type[CustomJob]:
    CustomJob.made = []
    module = ModuleType("google.cloud.aiplatform")
    vars(module).update(CustomJob=CustomJob, init=lambda **_: None)
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform", module)
    for name in ("google", "google.cloud"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return CustomJob


def run_vertex(launched: LaunchProject) -> None:
    async def nothing() -> None:
        return None

    cloud = SimpleNamespace(verify=nothing, get_credentials=nothing, project="ours", region="europe-west4")
    runner = VertexRunner(API, BACKEND, cloud, LocalRegistry())  # type: ignore[arg-type]
    asyncio.run(runner.run(launched, launched.image_name))


def test_a_vertex_job_has_what_the_runner_needs(vertex: type[CustomJob]) -> None:
    run_vertex(project(queue_of("launch_vertex")))
    job, run = vertex.made
    assert job["display_name"] == "sweep-w0003"
    (pool,) = job["worker_pool_specs"]
    machine = {"machine_type": "g2-standard-12", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}
    assert pool["machine_spec"] == machine
    assert pool["container_spec"]["image_uri"] == IMAGE
    assert pool["container_spec"]["command"] == []  # so the image's entry point runs
    assert {entry["name"]: entry["value"] for entry in pool["container_spec"]["env"]}["WANDB_RUN_ID"] == "sweep-w0003"
    assert run["restart_job_on_worker_restart"] is False


@pytest.mark.parametrize(("needed", "words"), [("worker_pool_specs", "worker pool"), ("staging_bucket", "staging")])
def test_what_the_vertex_queue_holds_the_runner_needs(vertex: type[CustomJob], needed: str, words: str) -> None:
    launched = project(queue_of("launch_vertex"))
    del launched.resource_args["gcp-vertex"]["spec"][needed]
    with pytest.raises(LaunchError, match=words):
        run_vertex(launched)
    assert vertex.made == []


# --- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHED)
def test_nothing_is_left_to_fill_in(name: str) -> None:
    launched = project(queue_of(name)) if queue_of(name).resource != "local-process" else None
    if launched is None:
        assert queue_of(name).template == {}
        return
    filled = launched.fill_macros(IMAGE)
    assert list(variables_in(filled)) == []
    assert "${" not in json.dumps(filled)
