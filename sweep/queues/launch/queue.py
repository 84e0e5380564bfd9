"""A queue of W&B Launch in W&B: how it is created and read.

Invariants: every action may be repeated. `_service_api` is private to wandb, whose version is pinned; it is used
because the public client would send a request for each queue item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.errors import ConfigError
from sweep.queues.launch.connection import Connection, asking
from sweep.queues.launch.section import LaunchQueue

QUEUES_PROJECT = "model-registry"  # the project in which W&B's client makes and looks up queues
ITEMS = """
query GetRunQueueItems($projectName: String!, $entityName: String!, $runQueue: String!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { runQueueItems(first: 100) { edges { node { id state } } } }
  }
}
"""


@dataclass(frozen=True)
class ServerQueue:
    """A queue as W&B has it.

    Args:
        template: the resource configuration, with its template variables.
        variables: JSON schema by template variable.
        items: number of items by state (pending, leased, claimed, failed), of the newest hundred.
    """

    resource: str
    template: Mapping[str, Any]
    variables: Mapping[str, Any]
    prioritization: bool
    items: Mapping[str, int] = field(default_factory=dict)


def find_queue(connection: Connection, queue: LaunchQueue) -> ServerQueue | None:
    """The queue as W&B has it; None if there is none."""
    with asking(connection.url):
        server = connection.api.run_queue(connection.entity, queue.name)
        variables = {"projectName": QUEUES_PROJECT, "entityName": connection.entity, "runQueue": queue.name}
        project = connection.api._service_api.execute_graphql(ITEMS, variables)["project"]
        if not project or not project["runQueue"]:
            return None
        states = [edge["node"]["state"].lower() for edge in project["runQueue"]["runQueueItems"]["edges"]]
        raw = server.default_resource_config
        config = json.loads(raw) if isinstance(raw, str) else raw
        return ServerQueue(
            server.type,
            (config or {}).get("resource_args", {}).get(server.type, {}),
            {entry["name"]: json.loads(entry["schema"]) for entry in server.template_variables or []},
            server.prioritization_mode == "V0",
            {state: states.count(state) for state in sorted(set(states))},
        )


def configured(queue: LaunchQueue) -> ServerQueue:
    """The queue as W&B should have it according to the configuration."""
    schemas = {name: dict(entry["schema"]) for name, entry in queue.template_variables.items()}
    return ServerQueue(queue.resource, queue.template, schemas, queue.prioritization)


def differences(server: ServerQueue, queue: LaunchQueue) -> list[str]:
    """The keys of the section in which W&B's queue differs from it."""
    local = configured(queue)
    pairs = {
        "resource": (server.resource, local.resource),
        "template": (server.template, local.template),
        "template_variables": (server.variables, local.variables),
        "prioritization": (server.prioritization, local.prioritization),
    }
    return [name for name, (theirs, ours) in pairs.items() if theirs != ours]


def create_queue(connection: Connection, queue: LaunchQueue) -> str:
    """Create the queue, or change it to what the configuration says; returns what was done, as text.

    Raises:
        ConfigError: the user does not belong to the entity, or the queue exists for another resource.
    """
    if queue.project_queue not in (None, QUEUES_PROJECT):
        raise ConfigError(
            f"queue.project_queue={queue.project_queue}: W&B's client creates queues in {QUEUES_PROJECT} only; set it "
            "to null, or create the queue in W&B's own pages"
        )
    check_entity(connection)
    server = find_queue(connection, queue)
    differing = differences(server, queue) if server else []
    if server and server.resource != queue.resource:
        path = f"{connection.entity}/{queue.name}"
        raise ConfigError(f"W&B has a queue {path} already, for {server.resource}; choose another queue.name")
    if server and not differing:
        return "it is as configured already"
    with asking(connection.url):
        connection.api.upsert_run_queue(
            name=queue.name,
            resource_config=dict(queue.template),
            resource_type=queue.resource,
            entity=connection.entity,
            template_variables=dict(queue.template_variables),
            prioritization_mode="V0" if queue.prioritization else "DISABLED",
        )
    return f"changed: {', '.join(differing)}" if server else "created"


def check_entity(connection: Connection) -> None:
    """Refuse an entity that the user does not belong to.

    Raises:
        ConfigError: it names the entities that the user belongs to.
    """
    if connection.entity not in (teams := connection.teams):
        raise ConfigError(f"queue.entity={connection.entity} is none of yours; allowed: {', '.join(teams)}")
