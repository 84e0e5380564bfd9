"""What the controller asks of W&B for a Launch queue: to push jobs, to show runs and to stop them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trainer.contract import STOP_TAG, StopCause


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """A run as W&B shows it.

    Args:
        state: running, finished, failed, crashed, killed, preempted, … in W&B's words.
        heartbeat: when W&B last received something of it; only compared with an earlier value.
        sweep: what the job wrote about itself into the run's configuration: trial, attempt, worker.
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
    def stop_requested(self) -> bool:
        """Whether a controller asked W&B to stop it; a person's stop leaves no tag."""
        return any(tag.startswith(STOP_TAG) for tag in self.tags)


@dataclass(frozen=True, slots=True)
class Push:
    """A job for the queue: the id of its run, its name and its run configuration."""

    run: str
    name: str
    config: Mapping[str, Any]


class LaunchApi(Protocol):
    """W&B as the dispatcher and the channel see it.

    A method raises `RetryLater` if W&B does not answer or limits requests, and `GiveUp` if it refuses.
    """

    def push(self, push: Push) -> str:
        """Put a job on the queue; returns the id of its item."""

    def item_state(self, item: str) -> str | None:
        """pending, leased, claimed or failed; None if the queue has no such item. One request."""

    def delete_item(self, item: str) -> None:
        """Take a job off the queue; nothing if it is gone."""

    def runs(self, ids: Sequence[str]) -> Mapping[str, ObservedRun]:
        """Those of these runs that exist. One request for a hundred runs."""

    def stop(self, run: str, cause: StopCause) -> None:
        """Ask a run to stop, with the cause as a tag; nothing if it is gone."""

    def configure(self, run: str, values: Mapping[str, Any]) -> None:
        """Change keys of a run's configuration."""

    def steps(self, run: str) -> Iterator[Mapping[str, Any]]:
        """The rows of a run's history that are optimizer steps, in order."""

    def fetch_adapter(self, name: str, directory: str) -> None:
        """Download an artifact, `name:alias`, into a directory."""
