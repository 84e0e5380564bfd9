"""What the controller asks of W&B for a Launch queue: push, look, stop. The one importer of `wandb.sdk.launch`.

Invariants: a method makes as many requests as its docstring says; the key stays in the client. Whatever the client
raises becomes `RetryLater` (the network, 429, 5xx) or `GiveUp` (no such queue, no such job, no right to it). Nothing
that the client remembers is believed: each look is made anew.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from sweep.config.queues import LaunchQueue, WandbLocation
from sweep.errors import GiveUp, RetryLater
from sweep.tracking.client import asked, client, summary
from trainer.contract import STOP_TAG, StopCause

# Runs a request returns at most.
PAGE = 100
# A run that was seen counts as deleted once so many looks in a row have not shown it.
MISSES = 2
# Changes of a run, each of what it names alone: the client's `Run.update` also sends configuration and summary as it
# saw them last, over whatever the job has put there since, and a trial's reports and outcome travel in the summary.
SET_TAGS = """
mutation UpsertBucket($id: String!, $tags: [String!]) {
  upsertBucket(input: {id: $id, tags: $tags}) { bucket { id } }
}
"""
SET_CONFIG = """
mutation UpsertBucket($id: String!, $config: JSONString!) {
  upsertBucket(input: {id: $id, config: $config}) { bucket { id } }
}
"""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as W&B shows it.

    Args:
        state: running, finished, failed, crashed, killed, preempted, … in W&B's words.
        heartbeat: when it was last heard of; only compared with an earlier one.
        sweep: what the trial wrote about itself into the run's configuration: trial, attempt, worker.
    """

    id: str
    state: str
    heartbeat: str = ""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state not in ("running", "pending", "preempting")

    @property
    def told_to_stop(self) -> bool:
        """By a controller: a person's stop leaves no tag."""
        return any(tag.startswith(STOP_TAG) for tag in self.tags)


@dataclass(frozen=True, slots=True)
class Push:
    """A job for the queue."""

    run: str
    name: str
    config: Mapping[str, Any]


class LaunchApi(Protocol):
    """W&B as the dispatcher and the channel see it."""

    def push(self, push: Push) -> str:
        """Put a job on the queue; returns the id of its item."""

    def item_state(self, item: str) -> str | None:
        """pending, leased, claimed or failed; None where the queue does not know it. One request."""

    def delete_item(self, item: str) -> None:
        """Take a job off the queue; nothing where it is gone."""

    def runs(self, ids: Sequence[str]) -> Mapping[str, RunFacts]:
        """Those of these runs that exist. One request for a hundred runs."""

    def stop(self, run: str, cause: StopCause) -> None:
        """Ask a run to stop, with the reason as a tag; nothing where it is gone."""

    def configure(self, run: str, values: Mapping[str, Any]) -> None:
        """Change keys of a run's configuration."""

    def steps(self, run: str) -> Iterator[Mapping[str, Any]]:
        """The rows of a run's history that are optimizer steps, in order."""

    def fetch_adapter(self, name: str, directory: str) -> None:
        """Download an artifact, `name:alias`, into a directory."""


@dataclass(slots=True)
class Runs:
    """The last look at a sweep's runs, shared by dispatcher and channel, so that one request serves both.

    Args:
        seconds: between two looks, at least.
        looks, failures: how many looks were answered, and how many were not.
    """

    api: LaunchApi
    seconds: float
    facts: dict[str, RunFacts] = field(default_factory=dict)
    looks: int = 0
    failures: int = 0
    _asked: float = float("-inf")
    _wanted: dict[str, Sequence[str]] = field(default_factory=dict)
    _missed: dict[str, int] = field(default_factory=dict)

    def want(self, who: str, ids: Sequence[str]) -> None:
        """From the next look on, see these runs too."""
        self._wanted[who] = ids

    def expect(self, run: str) -> None:
        """This run has been seen, if not by us: from now on it counts as deleted where looks do not show it."""
        self._missed.setdefault(run, 0)

    def deleted(self, run: str) -> bool:
        """It was there, and the last looks did not show it."""
        return self._missed.get(run, 0) >= MISSES

    def look(self, now: bool = False) -> bool:
        """Ask for all that is wanted, if it is time to or must be `now`; True where that was done.

        Raises:
            RetryLater: W&B does not answer; what was seen before stays.
        """
        ids = list(dict.fromkeys(run for wanted in self._wanted.values() for run in wanted))
        if not ids or (not now and time.monotonic() - self._asked < self.seconds):
            return False
        try:
            found = dict(self.api.runs(ids))
        except RetryLater:
            self.failures += 1
            raise
        finally:
            self._asked = time.monotonic()
        for run in ids:
            if run in found:
                self._missed[run] = 0
            elif run in self._missed:
                self._missed[run] += 1
        self.facts = found
        self.looks += 1
        return True


@dataclass(slots=True)
class WandbLaunchApi:
    """A `LaunchApi` through the W&B client."""

    queue: LaunchQueue
    location: WandbLocation
    job: str
    _api: Any = None
    _checked: bool = False
    _seen: dict[str, Any] = field(default_factory=dict)

    def push(self, push: Push) -> str:
        from wandb.sdk.launch.errors import LaunchError

        if not self._checked and not self.queue.docker_image:  # the client looks for it when it has pushed
            asked(lambda: self._client().artifact(self.job, type="job"), f"the job {self.job}")
        self._checked = True
        try:
            return str(asked(lambda: self._add(push), f"the queue {self.queue.name}").id)
        except RetryLater as error:
            if isinstance(error.__cause__, LaunchError):  # the client does not say why it could not push
                asked(self._queue_id, f"the queue {self.queue.name}")
            raise

    def _add(self, push: Push) -> Any:
        from wandb.sdk.launch import launch_add

        queue, location = self.queue, self.location
        owner = {"queue_entity": queue.entity} if queue.entity else {}
        return launch_add(
            job=None if queue.docker_image else self.job,
            docker_image=queue.docker_image,
            config={**owner, "overrides": {"run_config": json.loads(json.dumps(push.config))}},
            template_variables=queue.variables or None,
            project=location.project,
            entity=location.entity,
            queue_name=queue.name,
            resource=queue.resource,
            resource_args=json.loads(json.dumps(queue.resource_args)) or None,
            name=push.name,
            project_queue=queue.project_queue,
            run_id=push.run,
            priority=queue.priority if queue.prioritization else None,
        )

    def _queue_id(self) -> str:
        """Of the queue as W&B has it; the client raises where there is none."""
        return str(self._client().run_queue(self.queue.entity or self.location.entity, self.queue.name).id)

    def item_state(self, item: str) -> str | None:
        try:
            return str(asked(lambda: self._item(item).state, "a queue item"))
        except GiveUp:
            return None

    def delete_item(self, item: str) -> None:
        with contextlib.suppress(GiveUp):
            asked(lambda: self._item(item).delete(), "a queue item")

    def runs(self, ids: Sequence[str]) -> Mapping[str, RunFacts]:
        found: dict[str, RunFacts] = {}
        for first in range(0, len(ids), PAGE):
            names = list(ids[first : first + PAGE])
            for run in asked(partial(self._page, names), f"the project {self.location.path}"):
                self._seen[run.id] = run
                found[run.id] = _facts(run)
        return found

    def stop(self, run: str, cause: StopCause) -> None:
        def ask() -> None:
            for found in self._page([run]):  # as it is now: others give tags too
                tags = [*(tag for tag in found.tags or () if not tag.startswith(STOP_TAG)), f"{STOP_TAG}{cause}"]
                self._change(SET_TAGS, id=found.storage_id, tags=tags)
                found.stop()

        with contextlib.suppress(GiveUp):
            asked(ask, f"the run {run}")

    def configure(self, run: str, values: Mapping[str, Any]) -> None:
        def change() -> None:
            found = self._client().run(f"{self.location.path}/{run}")
            found.load(force=True)
            found.config.update(values)
            self._change(SET_CONFIG, id=found.storage_id, config=found.json_config)

        asked(change, f"the run {run}")

    def steps(self, run: str) -> Iterator[Mapping[str, Any]]:
        keys = ["global_step", "tokens", "loss", "grad_norm", "lr"]
        rows = asked(lambda: list(self._run(run).scan_history(keys=keys)), f"the history of {run}")
        yield from rows

    def fetch_adapter(self, name: str, directory: str) -> None:
        def fetch() -> None:
            self._client().artifact(f"{self.location.path}/{name}", type="model").download(root=directory)

        asked(fetch, f"the artifact {name}")

    # --- the client ----------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        if self._api is None:
            self._api = client()
        return self._api

    def _page(self, names: list[str]) -> list[Any]:
        client = self._client()
        client.flush()  # it would answer from memory
        try:
            return list(client.runs(self.location.path, {"name": {"$in": names}}, per_page=PAGE, lazy=False))
        except ValueError as error:  # the project appears with its first run
            if "Could not find project" in str(error):
                return []
            raise

    def _run(self, run: str) -> Any:
        return self._seen.get(run) or self._client().run(f"{self.location.path}/{run}")

    def _change(self, mutation: str, **variables: Any) -> None:
        self._client()._service_api.execute_graphql(mutation, variables)  # private to wandb, whose version is pinned

    def _item(self, item: str) -> Any:
        location, queue = self.location, self.queue
        extra = {"project_queue": queue.project_queue} if queue.project_queue else {}
        return self._client().queued_run(queue.entity or location.entity, location.project, queue.name, item, **extra)


def make_api(queue: LaunchQueue, location: WandbLocation, job: str) -> WandbLaunchApi:
    return WandbLaunchApi(queue, location, job)


def default_entity() -> str:
    """The entity of the key's owner.

    Raises:
        ConfigError: there is no key, or W&B refuses it. RetryLater: W&B cannot be reached.
    """
    return str(asked(lambda: client().default_entity, "your W&B account"))


def _facts(run: Any) -> RunFacts:
    config = run.config or {}
    sweep = config.get("sweep")
    return RunFacts(
        id=str(run.id),
        state=str(run.state).lower(),
        heartbeat=str(getattr(run, "heartbeatAt", None) or getattr(run, "heartbeat_at", None) or ""),
        sweep=sweep if isinstance(sweep, Mapping) else {},
        summary=summary(run),
        tags=tuple(run.tags or ()),
    )
