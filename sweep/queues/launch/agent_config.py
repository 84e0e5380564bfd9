"""The configuration of an agent of W&B Launch: its `launch-config.yaml`, and its objects for a Kubernetes cluster.

Invariants: pure, and nothing contains an API key. An agent reads WANDB_API_KEY from its environment, in a cluster from
a secret.

The Kubernetes objects are kept although W&B has a Helm chart for its agent. `sweep queue agent --kubernetes` is a
documented command (docs/launch.md); it needs kubectl only, its role has the permissions that the shipped templates need
and no others, and its configuration is always that of the queue's section. The objects are validated against the
Kubernetes API's own schemas by tests/integration/test_wandb_queue.py.
"""

from __future__ import annotations

from typing import Any

import yaml

from sweep.errors import ConfigError
from sweep.queues.launch.section import LaunchQueue

NAME = "sweep-launch-agent"
RELEASE = "sweep"  # the agent reads the secret `wandb-api-key-RELEASE`, and passes it to the pods that it starts
IMAGE = "wandb/launch-agent:latest"
CLOUDS = {"sagemaker": "aws", "gcp-vertex": "gcp"}
# What the agent may do in a cluster: API groups, kinds and verbs.
RULES = (
    ([""], ["pods", "pods/log", "secrets"], ["create", "get", "list", "watch", "delete"]),
    (["batch"], ["jobs", "jobs/status"], ["create", "get", "list", "watch", "patch", "delete"]),
    (["kubeflow.org"], ["pytorchjobs", "pytorchjobs/status"], ["create", "get", "list", "watch", "delete"]),
)


class _Plain(yaml.SafeDumper):
    """Writes no anchors, so that each object of the file can be read by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def agent_config(queue: LaunchQueue, entity: str, region: str | None = None) -> dict[str, Any]:
    """The content of `launch-config.yaml`.

    Raises:
        ConfigError: the resource is that of a cloud, and no region is given.
    """
    config: dict[str, Any] = {"entity": entity, "queues": [queue.name], "max_jobs": queue.max_jobs}
    config["builder"] = {"type": "noop"}  # images are built before, from launch_queues/Dockerfile
    if cloud := CLOUDS.get(queue.resource):
        if region is None:
            raise ConfigError(f"queue.resource={queue.resource} needs a region for its agent; name it: --region NAME")
        config["environment"] = {"type": cloud, "region": region}
    return config


def agent_text(queue: LaunchQueue, entity: str, region: str | None = None) -> str:
    """The configuration as a file, with a comment that says how to start the agent."""
    config = yaml.safe_dump(agent_config(queue, entity, region), sort_keys=False)
    return (
        f"# launch-config.yaml for the queue {entity}/{queue.name}; its key: WANDB_API_KEY or `wandb login`\n"
        f"# {agent_line('launch-config.yaml')}\n{config}"
    )


def agent_line(path: str) -> str:
    """The command that starts an agent with a configuration file."""
    return f"wandb launch-agent --config {path}"


def cluster_objects(queue: LaunchQueue, entity: str, namespace: str, url: str) -> list[dict[str, Any]]:
    """An agent as objects of a Kubernetes cluster, for `kubectl apply`. The secret with the key is created by hand.

    Raises:
        ConfigError: the queue's resource is not Kubernetes.
    """
    if queue.resource != "kubernetes":
        raise ConfigError(f"queue.resource={queue.resource} has no agent in a cluster; leave out --kubernetes")
    at = {"name": NAME, "namespace": namespace}
    config = yaml.safe_dump(agent_config(queue, entity), sort_keys=False)
    rules = [{"apiGroups": groups, "resources": kinds, "verbs": verbs} for groups, kinds, verbs in RULES]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME}
    subject = {"kind": "ServiceAccount", **at}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": at},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": at, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": at,
            "roleRef": role,
            "subjects": [subject],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": at, "data": {"launch-config.yaml": config}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": at,
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": {"app": NAME}},
                "template": {"metadata": {"labels": {"app": NAME}}, "spec": _pod(url)},
            },
        },
    ]


def _pod(url: str) -> dict[str, Any]:
    key = {"secretKeyRef": {"name": f"wandb-api-key-{RELEASE}", "key": "password"}}
    container = {
        "name": "agent",
        "image": IMAGE,
        "env": [
            {"name": "WANDB_API_KEY", "valueFrom": key},
            {"name": "WANDB_BASE_URL", "value": url},
            {"name": "WANDB_RELEASE_NAME", "value": RELEASE},
        ],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/home/launch_agent/.config/wandb", "readOnly": True}],
    }
    return {
        "serviceAccountName": NAME,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    }


def cluster_text(queue: LaunchQueue, entity: str, namespace: str, url: str) -> str:
    """The objects as one file, with a comment that says how to create the secret."""
    objects = yaml.dump_all(cluster_objects(queue, entity, namespace, url), Dumper=_Plain, sort_keys=False)
    return (
        f"# An agent for the queue {entity}/{queue.name}. First, with the key in your environment:\n"
        f'# printf %s "$WANDB_API_KEY" | kubectl -n {namespace} create secret generic wandb-api-key-{RELEASE} '
        "--from-file=password=/dev/stdin\n"
        f"{objects}"
    )
