"""W&B as the dispatcher and the channel of a Launch queue see it, through W&B's client.

Invariants: only this module imports `wandb.sdk.launch`. A method makes as many requests as `LaunchApi` says, and the
API key stays in the client. What the client raises becomes `RetryLater` (the network, 429, 5xx) or `GiveUp` (no such
queue, no such job, no permission). The client's cache is never used: each look sends a request.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sweep.errors import GiveUp, RetryLater
from sweep.queues.launch.api import ObservedRun, Push
from sweep.queues.launch.section import LaunchQueue
from sweep.tracking.client import client, summary, translated
from sweep.tracking.runs import WandbLocation
from trainer.contract import STOP_TAG, StopCause

# Runs that a request returns at most.
PAGE = 100
# Each mutation changes only what it names. The client's `Run.update` would also send configuration and summary as it
# saw them last, over what the job has written since; and a trial's reports and outcome travel in the summary.
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

        if not self._checked and not self.queue.docker_image:  # the client looks for it only after the push
            translated(lambda: self._client().artifact(self.job, type="job"), f"the job {self.job}")
        self._checked = True
        try:
            return str(translated(lambda: self._add(push), f"the queue {self.queue.name}").id)
        except RetryLater as error:
            if isinstance(error.__cause__, LaunchError):  # the client hides why; without a queue this raises GiveUp
                translated(self._queue_id, f"the queue {self.queue.name}")
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
        """The id of the queue in W&B; the client raises if there is none."""
        return str(self._client().run_queue(self.queue.entity or self.location.entity, self.queue.name).id)

    def item_state(self, item: str) -> str | None:
        try:
            return str(translated(lambda: self._item(item).state, "a queue item"))
        except GiveUp:
            return None

    def delete_item(self, item: str) -> None:
        with contextlib.suppress(GiveUp):
            translated(lambda: self._item(item).delete(), "a queue item")

    def runs(self, ids: Sequence[str]) -> Mapping[str, ObservedRun]:
        observed: dict[str, ObservedRun] = {}
        for first in range(0, len(ids), PAGE):
            names = list(ids[first : first + PAGE])
            for run in translated(partial(self._page, names), f"the project {self.location.path}"):
                self._seen[run.id] = run
                observed[run.id] = _observed(run)
        return observed

    def stop(self, run: str, cause: StopCause) -> None:
        def ask() -> None:
            for current in self._page([run]):  # as it is now, since others add tags too
                tags = [*(tag for tag in current.tags or () if not tag.startswith(STOP_TAG)), f"{STOP_TAG}{cause}"]
                self._change(SET_TAGS, id=current.storage_id, tags=tags)
                current.stop()

        with contextlib.suppress(GiveUp):
            translated(ask, f"the run {run}")

    def configure(self, run: str, values: Mapping[str, Any]) -> None:
        def change() -> None:
            current = self._client().run(f"{self.location.path}/{run}")
            current.load(force=True)
            current.config.update(values)
            self._change(SET_CONFIG, id=current.storage_id, config=current.json_config)

        translated(change, f"the run {run}")

    def steps(self, run: str) -> Iterator[Mapping[str, Any]]:
        keys = ["global_step", "tokens", "loss", "grad_norm", "lr"]
        rows = translated(lambda: list(self._run(run).scan_history(keys=keys)), f"the history of {run}")
        yield from rows

    def fetch_adapter(self, name: str, directory: str) -> None:
        def fetch() -> None:
            self._client().artifact(f"{self.location.path}/{name}", type="model").download(root=directory)

        translated(fetch, f"the artifact {name}")

    # --- the client ----------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        if self._api is None:
            self._api = client()
        return self._api

    def _page(self, names: list[str]) -> list[Any]:
        client = self._client()
        client.flush()  # else it answers from its cache
        try:
            return list(client.runs(self.location.path, {"name": {"$in": names}}, per_page=PAGE, lazy=False))
        except ValueError as error:  # a project begins with its first run
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
    """W&B as the controller of a sweep uses it. Nothing is asked yet.

    Args:
        job: the job artifact that is pushed.
    """
    return WandbLaunchApi(queue, location, job)


def default_entity() -> str:
    """The entity of the key's owner.

    Raises:
        ConfigError: there is no key, or W&B refuses it. RetryLater: W&B cannot be reached.
    """
    return str(translated(lambda: client().default_entity, "your W&B account"))


def _observed(run: Any) -> ObservedRun:
    config = run.config or {}
    sweep = config.get("sweep")
    return ObservedRun(
        id=str(run.id),
        state=str(run.state).lower(),
        heartbeat=str(getattr(run, "heartbeatAt", None) or getattr(run, "heartbeat_at", None) or ""),
        sweep=sweep if isinstance(sweep, Mapping) else {},
        summary=summary(run),
        tags=tuple(run.tags or ()),
    )
