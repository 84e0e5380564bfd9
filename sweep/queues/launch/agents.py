"""The agents of a queue, if the W&B server lists them.

Invariant: None says that nothing is known, an empty list that no agent exists.

wandb's client has no query for the agents of a queue, and W&B documents none. So the server is asked which field of its
schema lists agents (wandb itself asks for the fields of types in the same way), and then for that field. The module is
kept because a pushed job without an agent never starts: `sweep doctor` and `sweep queue`, both documented, say that no
agent polls before a sweep waits for nothing. If a server's schema has no such field, both fall back to the states of
the queue's items.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sweep.errors import RetryLater, SweepError
from sweep.queues.launch.connection import Connection, asking
from sweep.queues.launch.queue import QUEUES_PROJECT

POLLING = ("POLLING", "RUNNING")
FRESH_SECONDS = 120.0  # an agent sends a heartbeat with each of its polls, every 10 seconds
TYPE = "name kind ofType { name kind ofType { name kind ofType { name kind ofType { name kind } } } }"
FIELDS = "{ fields { name args { type { kind } } type { " + TYPE + " } } }"
SCHEMA = f"""
query LaunchAgentFields {{
  RunQueue: __type(name: "RunQueue") {FIELDS}
  Project: __type(name: "Project") {FIELDS}
  Entity: __type(name: "Entity") {FIELDS}
}}
"""
AGENT = "{ name hostname agentStatus stopPolling heartbeatAt runQueues }"
# The query that reaches a field of each type, from the most specific type, with the variables of that query.
QUERIES = {
    "RunQueue": ("project(name: $project, entityName: $entity) { runQueue(name: $queue) { %s } }", "project queue"),
    "Project": ("project(name: $project, entityName: $entity) { %s }", "project"),
    "Entity": ("entity(name: $entity) { %s }", ""),
}


@dataclass(frozen=True)
class Agent:
    """An agent of a queue.

    Args:
        silence: seconds since its last heartbeat.
    """

    name: str
    host: str
    status: str
    silence: float

    @property
    def polls(self) -> bool:
        """Whether it takes jobs from its queues now."""
        return self.status in POLLING and self.silence < FRESH_SECONDS

    def __str__(self) -> str:
        return f"{self.name} on {self.host}: {self.status.lower()}, last heartbeat {self.silence:.0f} s ago"


@dataclass(frozen=True)
class AgentsField:
    """A field of the server's schema that lists agents.

    Args:
        type: name of the GraphQL type that has the field.
        is_connection: whether the field is a connection with edges, and not a list.
    """

    type: str
    field: str
    is_connection: bool


def find_agents(connection: Connection, name: str) -> list[Agent] | None:
    """The agents of a queue, the most recent heartbeat first; None if the server's schema lists no agents."""
    graphql = connection.api._service_api.execute_graphql
    location = _agents_field(connection)
    if location is None:
        return None
    with asking(connection.url):
        queue_id = connection.api.run_queue(connection.entity, name).id
        values = {"entity": connection.entity, "project": QUEUES_PROJECT, "queue": name}
        used = {key: value for key, value in values.items() if key in ("entity", *QUERIES[location.type][1].split())}
        answer = graphql(agents_query(location), used)
    parent = answer["entity"] if location.type == "Entity" else answer["project"]
    listed = (parent["runQueue"] if location.type == "RunQueue" else parent)[location.field]
    nodes = [edge["node"] for edge in listed["edges"]] if location.is_connection else listed
    own = [node for node in nodes if location.type == "RunQueue" or queue_id in (node["runQueues"] or [])]
    return sorted((_agent(node) for node in own), key=lambda agent: agent.silence)


def _agents_field(connection: Connection) -> AgentsField | None:
    """The field that lists agents; None if there is none, or if the server refuses to show its schema."""
    try:
        with asking(connection.url):
            return agents_field(connection.api._service_api.execute_graphql(SCHEMA))
    except RetryLater:
        raise
    except SweepError:
        return None


def agents_query(location: AgentsField) -> str:
    """The query for the agents in this field."""
    text, names = QUERIES[location.type]
    field = location.field
    inner = f"{field} {{ edges {{ node {AGENT} }} }}" if location.is_connection else f"{field} {AGENT}"
    declared = ", ".join(f"${name}: String!" for name in ("entity", *names.split()))
    return f"query LaunchAgents({declared}) {{ {text % inner} }}"


def agents_field(schema: Mapping[str, Any]) -> AgentsField | None:
    """The field of a server's schema that lists agents; None if there is none."""
    for type_name in QUERIES:
        for field in (schema.get(type_name) or {}).get("fields") or []:
            base = _base(field["type"])
            needs_arguments = any(argument["type"]["kind"] == "NON_NULL" for argument in field["args"])
            if base in ("LaunchAgent", "LaunchAgentConnection") and not needs_arguments:
                return AgentsField(type_name, field["name"], base != "LaunchAgent")
    return None


def _base(kind: Mapping[str, Any] | None) -> str:
    """The name of a GraphQL type without the lists and non-nulls around it."""
    while kind and kind.get("ofType"):
        kind = kind["ofType"]
    return str(kind["name"]) if kind else ""


def _agent(node: Mapping[str, Any]) -> Agent:
    heartbeat = datetime.fromisoformat(str(node["heartbeatAt"]).rstrip("Z")).replace(tzinfo=UTC)
    status = "stopping" if node["stopPolling"] else str(node["agentStatus"])
    return Agent(str(node["name"]), str(node["hostname"]), status, max(0.0, time.time() - heartbeat.timestamp()))
