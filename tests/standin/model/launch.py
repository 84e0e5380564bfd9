"""Launch: queues, their items, agents."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.standin.model.words import Json, Limits, identifier


class ItemState(StrEnum):
    PENDING = "PENDING"
    LEASED = "LEASED"
    CLAIMED = "CLAIMED"
    FAILED = "FAILED"


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
