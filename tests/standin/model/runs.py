"""A run, and the state that follows from what its client told."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from enum import StrEnum

from tests.standin.model.words import Json, Limits, identifier


class RunState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    KILLED = "killed"
    PREEMPTING = "preempting"
    PREEMPTED = "preempted"


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

    def begin(self, words: str, resumed: bool) -> None:
        """A client began it, for the first time or again. The same words once more, before it has streamed, come from
        a client that repeats itself because no answer reached it."""
        if words and words == self.begun_with:
            return
        self.begun_with = words
        self.starts += 1
        if self.limits.overwrites and not resumed:
            self.lines.clear()
            self.summary = {}
        self.ended = self.exit_code = None
        self.pending = self.preempting = False
        self.stop_requests.clear()
        self.heartbeat = time.time()
