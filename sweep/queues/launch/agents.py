"""The agents of a queue, as far as a W&B server tells.

wandb's own client has no question for the agents of a queue, so the server is asked which field of its schema lists
them (as wandb itself asks for the fields of types), and then that one. Where there is none, nothing is known, which is
something else than no agents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sweep.errors import RetryLater, SweepError
from sweep.queues.launch.queue import QUEUES_PROJECT, Connection, asking

POLLING = ("POLLING", "RUNNING")
FRESH_SECONDS = 120.0  # an agent is heard of at each of its polls, every 10 seconds
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
# Where a field of each type stands in a query, from the most particular, with the variables of that query.
PLACES = {
    "RunQueue": ("project(name: $project, entityName: $entity) { runQueue(name: $queue) { %s } }", "project queue"),
    "Project": ("project(name: $project, entityName: $entity) { %s }", "project"),
    "Entity": ("entity(name: $entity) { %s }", ""),
}


@dataclass(frozen=True)
class Agent:
    """An agent as W&B last heard of it. `silence`: seconds since then."""

    name: str
    host: str
    status: str
    silence: float

    @property
    def polls(self) -> bool:
        return self.status in POLLING and self.silence < FRESH_SECONDS

    def __str__(self) -> str:
        return f"{self.name} on {self.host}: {self.status.lower()}, heard {self.silence:.0f} s ago"


def find_agents(connection: Connection, name: str) -> list[Agent] | None:
    """The agents of a queue, the last heard first; null where the server's schema lists none."""
    graphql = connection.api._service_api.execute_graphql
    found = _agents_field(connection)
    if found is None:
        return None
    with asking(connection.url):
        queue_id = connection.api.run_queue(connection.entity, name).id
        place, field, connected = found
        values = {"entity": connection.entity, "project": QUEUES_PROJECT, "queue": name}
        used = {key: value for key, value in values.items() if key in ("entity", *PLACES[place][1].split())}
        answer = graphql(agents_query(place, field, connected), used)
    at = answer["entity"] if place == "Entity" else answer["project"]
    listed = (at["runQueue"] if place == "RunQueue" else at)[field]
    nodes = [edge["node"] for edge in listed["edges"]] if connected else listed
    ours = [node for node in nodes if place == "RunQueue" or queue_id in (node["runQueues"] or [])]
    return sorted((_agent(node) for node in ours), key=lambda agent: agent.silence)


def _agents_field(connection: Connection) -> tuple[str, str, bool] | None:
    """A server may refuse to tell its schema."""
    try:
        with asking(connection.url):
            return agents_field(connection.api._service_api.execute_graphql(SCHEMA))
    except RetryLater:
        raise
    except SweepError:
        return None


def agents_query(place: str, field: str, connected: bool) -> str:
    """The question that `agents_field` has found."""
    text, names = PLACES[place]
    inner = f"{field} {{ edges {{ node {AGENT} }} }}" if connected else f"{field} {AGENT}"
    declared = ", ".join(f"${name}: String!" for name in ("entity", *names.split()))
    return f"query LaunchAgents({declared}) {{ {text % inner} }}"


def agents_field(schema: Mapping[str, Any]) -> tuple[str, str, bool] | None:
    """Which field lists agents: its type, its name, and whether it is a connection; null where none does."""
    for place in PLACES:
        for field in (schema.get(place) or {}).get("fields") or []:
            base = _base(field["type"])
            needs = any(argument["type"]["kind"] == "NON_NULL" for argument in field["args"])
            if base in ("LaunchAgent", "LaunchAgentConnection") and not needs:
                return place, field["name"], base != "LaunchAgent"
    return None


def _base(kind: Mapping[str, Any] | None) -> str:
    """The name of a type without its lists and non-nulls."""
    while kind and kind.get("ofType"):
        kind = kind["ofType"]
    return str(kind["name"]) if kind else ""


def _agent(node: Mapping[str, Any]) -> Agent:
    heard = datetime.fromisoformat(str(node["heartbeatAt"]).rstrip("Z")).replace(tzinfo=UTC)
    status = "stopping" if node["stopPolling"] else str(node["agentStatus"])
    return Agent(str(node["name"]), str(node["hostname"]), status, max(0.0, time.time() - heard.timestamp()))
