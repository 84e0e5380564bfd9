"""What the stand-in remembers. All is changed under `Store.lock`; tests read it once their client has been answered."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Json = dict[str, Any]


class RunState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    KILLED = "killed"
    PREEMPTING = "preempting"
    PREEMPTED = "preempted"


class ItemState(StrEnum):
    PENDING = "PENDING"
    LEASED = "LEASED"
    CLAIMED = "CLAIMED"
    FAILED = "FAILED"


def identifier(*words: object) -> str:
    """An opaque id as GraphQL servers make them."""
    return base64.standard_b64encode(":".join(str(word) for word in words).encode()).decode()


def fresh(kind: str) -> str:
    return identifier(kind, uuid.uuid4().hex[:12])


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass
class Limits:
    """What tests may shorten. Seconds."""

    crash_after: float = 300.0  # a running run without a heartbeat for so long has crashed
    poll_expiry: float = 60.0  # an agent that was not heard of for so long is called KILLED
    lease: float = 60.0  # an item that was popped and not acknowledged for so long waits again


@dataclass
class Run:
    """A run as its client has told it. `lines` are those of its streamed files, by offset, as they were sent."""

    entity: str
    project: str
    id: str
    limits: Limits
    display_name: str = ""
    wire_config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    description: str | None = None
    commit: str | None = None
    host: str | None = None
    program: str | None = None
    sweep: str | None = None
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.time)
    pending: bool = False
    preempting: bool = False
    exit_code: int | None = None
    ended: RunState | None = None
    stop_requests: list[float] = field(default_factory=list)
    stop_told: list[float] = field(default_factory=list)  # when an answer said so to the client
    starts: int = 0  # how many clients began it; 1 is a run that nobody resumed
    begun_with: str = ""  # what its latest client said at the beginning, until it has streamed
    alerts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"

    @property
    def storage_id(self) -> str:
        return identifier("Run", "v1", self.id, self.project, self.entity)

    @property
    def resumed(self) -> int:
        return max(0, self.starts - 1)

    @property
    def stopped(self) -> bool:
        return bool(self.stop_requests)

    @property
    def config(self) -> Json:
        """Plain values, without the client's own."""
        return {
            key: value["value"] if isinstance(value, dict) and "value" in value else value
            for key, value in self.wire_config.items()
            if key not in {"_wandb", "wandb_version"}
        }

    @property
    def history(self) -> list[Json]:
        """The rows that were logged, in order."""
        return self.rows("wandb-history.jsonl")

    @property
    def events(self) -> list[Json]:
        return self.rows("wandb-events.jsonl")

    def rows(self, name: str) -> list[Json]:
        return [json.loads(line) for _, line in sorted(self.lines.get(name, {}).items()) if line.strip()]

    @property
    def output(self) -> list[str]:
        return [line for _, line in sorted(self.lines.get("output.log", {}).items())]

    @property
    def state(self) -> RunState:
        if self.ended is not None:
            return self.ended
        if self.pending:
            return RunState.PENDING
        silent = time.time() - self.heartbeat > self.limits.crash_after
        if self.preempting:
            return RunState.PREEMPTED if silent else RunState.PREEMPTING
        return RunState.CRASHED if silent else RunState.RUNNING

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        if exit_code == 0:
            self.ended = RunState.FINISHED
        elif self.preempting:
            self.ended = RunState.PREEMPTED
        else:
            self.ended = RunState.KILLED if self.stopped else RunState.FAILED

    def begin(self, words: str) -> None:
        """A client began it, for the first time or again. The same words once more, before it has streamed, come from
        a client that repeats itself because no answer reached it."""
        if words and words == self.begun_with:
            return
        self.begun_with = words
        self.starts += 1
        self.ended = self.exit_code = None
        self.pending = self.preempting = False
        self.stop_requests.clear()
        self.heartbeat = time.time()


@dataclass
class Queue:
    entity: str
    project: str
    name: str
    access: str = "PROJECT"
    resource: str | None = None
    config: Json = field(default_factory=dict)  # as it was created with: {"resource_args": {resource: ...}}
    template_variables: Json = field(default_factory=dict)  # name -> {"schema": …} or the schema itself
    prioritized: bool = False
    config_id: str | None = None
    external_links: Any = None

    @property
    def id(self) -> str:
        return identifier("RunQueue", self.entity, self.project, self.name)


@dataclass
class Item:
    """One entry of a queue."""

    id: str
    queue: str
    spec: Json
    priority: int
    pushed: float
    number: int
    state: ItemState = ItemState.PENDING
    leased: float | None = None
    leased_by: str | None = None
    run_id: str | None = None  # told at the acknowledgement
    acked: float | None = None
    error: Json | None = None
    warnings: list[str] = field(default_factory=list)

    def waits(self, lease: float) -> bool:
        """To be popped: nobody took it, or whoever did has let its lease run out."""
        if self.state is ItemState.LEASED:
            return self.leased is not None and time.time() - self.leased > lease
        return self.state is ItemState.PENDING


@dataclass
class Agent:
    id: str
    name: str
    entity: str
    queues: list[str]  # queue ids
    hostname: str
    config: Json
    version: str
    limits: Limits
    told_status: str = "POLLING"
    created: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.time)
    last_poll: float | None = None
    stop_polling: bool = False

    @property
    def status(self) -> str:
        """What it said itself, or KILLED when it has not been heard of for too long."""
        gone = time.time() - self.heartbeat > self.limits.poll_expiry
        return "KILLED" if gone and self.told_status in {"POLLING", "RUNNING"} else self.told_status


@dataclass
class Membership:
    """An artifact in a collection: in its own sequence, or linked to a portfolio."""

    artifact: str
    version: int
    aliases: list[str] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return identifier("Membership", self.artifact, self.version)


@dataclass
class Collection:
    entity: str
    project: str
    name: str
    type: str
    portfolio: bool = False
    description: str | None = None
    tags: list[str] = field(default_factory=list)
    members: list[Membership] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return identifier("Portfolio" if self.portfolio else "Sequence", self.entity, self.project, self.name)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"

    def find(self, alias: str) -> Membership | None:
        wanted = alias or "latest"
        return next((one for one in self.members if wanted == f"v{one.version}" or wanted in one.aliases), None)

    def name_so(self, member: Membership, aliases: list[str]) -> None:
        """An alias names one member at a time."""
        for other in self.members:
            other.aliases = [alias for alias in other.aliases if alias not in aliases or other is member]
        member.aliases = list(dict.fromkeys([*member.aliases, *aliases]))


@dataclass
class Artifact:
    id: str
    entity: str
    project: str
    collection: str
    type: str
    digest: str
    version: int
    client_id: str | None = None
    state: str = "PENDING"
    description: str | None = None
    metadata: Json = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    history_step: int | None = None
    ttl: int = -2
    digest_algorithm: str = "MANIFEST_MD5"
    manifest_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # name -> path of the blob
    logged_by: str | None = None  # path of a run
    used_by: list[str] = field(default_factory=list)  # paths of runs
    created: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.version}"

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"


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
