"""All that the stand-in remembers. It changes under `Store.lock`; tests read it once their client has been answered."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.standin.model.artifacts import Artifact, Collection
from tests.standin.model.launch import Agent, Item, Queue
from tests.standin.model.runs import Run
from tests.standin.model.words import Json, Limits


@dataclass
class Automation:
    id: str
    name: str
    description: str | None
    enabled: bool
    scope_type: str
    scope_id: str
    event_type: str
    event_filter: Any
    action_type: str
    action: Json
    created: float = field(default_factory=time.time)


@dataclass
class Integration:
    """A webhook or a Slack channel of an entity."""

    id: str
    kind: str  # GenericWebhookIntegration | SlackIntegration
    entity: str
    fields: Json


@dataclass(frozen=True)
class Request:
    """One answered request. `operation` is a GraphQL operation's name, or `file_stream`, `upload`, `download`."""

    time: float
    operation: str
    status: int
    who: str
    path: str = ""
    fault: str = ""


@dataclass
class Store:
    """All of it."""

    entity: str
    user: str
    organization: str
    limits: Limits = field(default_factory=Limits)
    lock: threading.RLock = field(default_factory=threading.RLock)
    runs: dict[str, Run] = field(default_factory=dict)
    deleted: dict[str, Run] = field(default_factory=dict)
    projects: dict[str, float] = field(default_factory=dict)  # path -> created
    queues: dict[str, Queue] = field(default_factory=dict)
    configs: dict[str, Json] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    lost: dict[str, Item] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    automations: dict[str, Automation] = field(default_factory=dict)
    integrations: dict[str, Integration] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    features: set[str] = field(default_factory=set)

    def run(self, path: str) -> Run | None:
        return self.runs.get(path)

    def run_by_storage_id(self, storage_id: str) -> Run | None:
        return next((run for run in self.runs.values() if run.storage_id == storage_id), None)

    def project(self, entity: str, project: str) -> None:
        self.projects.setdefault(f"{entity}/{project}", time.time())
