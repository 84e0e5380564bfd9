"""A connection to W&B as the user of its API key, and what W&B's errors mean.

Invariants: an error of W&B becomes a sentence that says what to do, and never contains a key. wandb is imported when a
connection is opened, and not before.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sweep.errors import ConfigError, RetryLater, SweepError
from sweep.queues.launch.section import LaunchQueue
from sweep.tracking.runs import WandbLocation

UNANSWERED = "did not respond in time"  # the words of wandb's service, which has retried for a while
KEYLIKE = re.compile(r"[A-Za-z0-9_-]{40,}")


@dataclass(frozen=True)
class Connection:
    """A client whose API key W&B has accepted.

    Args:
        url: address of the server.
        entity: owner of the queue.
        home: project of the runs and of the job artifact, `entity/project`.
    """

    api: Any
    url: str
    entity: str
    home: str

    @property
    def teams(self) -> list[str]:
        """The entities that may own a queue: the user and the user's teams, sorted."""
        with asking(self.url):
            viewer = self.api.viewer
            return sorted({viewer.entity, viewer.username, *viewer.teams} - {None})


def connect(queue: LaunchQueue, location: WandbLocation) -> Connection:
    """A connection to the W&B server of this machine's settings, as the user of its API key.

    Raises:
        ConfigError: there is no key, W&B does not accept it, or no entity is named.
        RetryLater: W&B does not answer.
    """
    import wandb

    url = str(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).rstrip("/")
    with asking(url):
        api = wandb.Api()
        entity = location.entity or api.settings["entity"] or api.default_entity
    if not entity:
        raise ConfigError(f"W&B at {url} names no default entity for this key; set wandb.entity to your user or team")
    return Connection(api, url, str(queue.entity or entity), f"{entity}/{location.project}")


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Turn what wandb raises in the block into an error of this program.

    Raises:
        ConfigError: W&B does not accept the key or the request. RetryLater: it does not answer, or limits requests.
        SweepError: it refuses.
    """
    from wandb.errors import AuthenticationError, Error, UsageError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except AuthenticationError as error:
        if UNANSWERED in str(error):
            raise _unanswered(url) from None
        raise ConfigError(
            f"W&B at {url} does not accept the API key ({_said(error)}); set WANDB_API_KEY, or `wandb login --relogin`"
        ) from None
    except UsageError as error:
        if "API key" in str(error) or "authentication" in str(error):
            raise ConfigError(f"no API key for W&B at {url}; set WANDB_API_KEY, or run `wandb login`") from None
        raise ConfigError(f"W&B's client refuses: {_said(error)}") from None
    except (Error, WandbApiFailedError) as error:
        raise _unanswered(url) if UNANSWERED in str(error) else _refusal(url, error) from None


def _unanswered(url: str) -> RetryLater:
    """The error for a server that does not answer: unreachable, or overloaded. The client has retried for a while."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), timeout=3.0).close()
    except OSError as error:
        return RetryLater(f"W&B at {url} cannot be reached ({error}); check WANDB_BASE_URL and the network, then retry")
    return RetryLater(
        f"W&B at {url} accepts connections but answers no request: it is overloaded, or limits yours (429); "
        "retry in a minute"
    )


def _refusal(url: str, error: Exception) -> SweepError:
    said = _said(error)
    if "429" in said or "rate limit" in said.lower():
        return RetryLater(f"W&B at {url} limits your requests ({said}); retry in a minute")
    return SweepError(f"W&B at {url} refuses: {said}")


def _said(error: Exception) -> str:
    """The first line of an error's text, without anything that could be a key."""
    text = str(getattr(error, "message", "") or error).strip()
    return KEYLIKE.sub("…", text.splitlines()[0] if text else type(error).__name__)[:300]
