"""A queue of W&B Launch in W&B: how it is created, read and given a job artifact.

Invariants: an error of W&B becomes a sentence that says what to do, and never contains a key. Every action may be
repeated. wandb is imported when a connection is opened, and not before. `_service_api` is private to wandb, whose
version is pinned; it is used because the public client would send a request for each queue item.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweep.errors import ConfigError, RetryLater, SweepError
from sweep.queues.launch.section import LaunchQueue
from sweep.resources import trainer_dir
from sweep.tracking.runs import WandbLocation

QUEUES_PROJECT = "model-registry"  # the project in which W&B's client makes and looks up queues
ENTRY_POINT = "python -m trainer.entry.launch_job"
JOB_SECONDS = 300.0
UNANSWERED = "did not respond in time"  # the words of wandb's service, which has retried for a while
KEYLIKE = re.compile(r"[A-Za-z0-9_-]{40,}")
ITEMS = """
query GetRunQueueItems($projectName: String!, $entityName: String!, $runQueue: String!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { runQueueItems(first: 100) { edges { node { id state } } } }
  }
}
"""


@dataclass(frozen=True)
class ServerQueue:
    """A queue as W&B has it.

    Args:
        template: the resource configuration, with its template variables.
        variables: JSON schema by template variable.
        items: number of items by state (pending, leased, claimed, failed), of the newest hundred.
    """

    resource: str
    template: Mapping[str, Any]
    variables: Mapping[str, Any]
    prioritization: bool
    items: Mapping[str, int] = field(default_factory=dict)


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


def find(connection: Connection, queue: LaunchQueue) -> ServerQueue | None:
    """The queue as W&B has it; None if there is none."""
    with asking(connection.url):
        server = connection.api.run_queue(connection.entity, queue.name)
        variables = {"projectName": QUEUES_PROJECT, "entityName": connection.entity, "runQueue": queue.name}
        project = connection.api._service_api.execute_graphql(ITEMS, variables)["project"]
        if not project or not project["runQueue"]:
            return None
        states = [edge["node"]["state"].lower() for edge in project["runQueue"]["runQueueItems"]["edges"]]
        raw = server.default_resource_config
        config = json.loads(raw) if isinstance(raw, str) else raw
        return ServerQueue(
            server.type,
            (config or {}).get("resource_args", {}).get(server.type, {}),
            {entry["name"]: json.loads(entry["schema"]) for entry in server.template_variables or []},
            server.prioritization_mode == "V0",
            {state: states.count(state) for state in sorted(set(states))},
        )


def configured(queue: LaunchQueue) -> ServerQueue:
    """The queue as W&B should have it according to the configuration."""
    schemas = {name: dict(entry["schema"]) for name, entry in queue.template_variables.items()}
    return ServerQueue(queue.resource, queue.template, schemas, queue.prioritization)


def differences(server: ServerQueue, queue: LaunchQueue) -> list[str]:
    """The keys of the section in which W&B's queue differs from it."""
    local = configured(queue)
    pairs = {
        "resource": (server.resource, local.resource),
        "template": (server.template, local.template),
        "template_variables": (server.variables, local.variables),
        "prioritization": (server.prioritization, local.prioritization),
    }
    return [name for name, (theirs, ours) in pairs.items() if theirs != ours]


def create(connection: Connection, queue: LaunchQueue) -> str:
    """Create the queue, or change it to what the configuration says; returns what was done, as text.

    Raises:
        ConfigError: the user does not belong to the entity, or the queue exists for another resource.
    """
    if queue.project_queue not in (None, QUEUES_PROJECT):
        raise ConfigError(
            f"queue.project_queue={queue.project_queue}: W&B's client creates queues in {QUEUES_PROJECT} only; set it "
            "to null, or create the queue in W&B's own pages"
        )
    check_entity(connection)
    server = find(connection, queue)
    differing = differences(server, queue) if server else []
    if server and server.resource != queue.resource:
        path = f"{connection.entity}/{queue.name}"
        raise ConfigError(f"W&B has a queue {path} already, for {server.resource}; choose another queue.name")
    if server and not differing:
        return "it is as configured already"
    with asking(connection.url):
        connection.api.upsert_run_queue(
            name=queue.name,
            resource_config=dict(queue.template),
            resource_type=queue.resource,
            entity=connection.entity,
            template_variables=dict(queue.template_variables),
            prioritization_mode="V0" if queue.prioritization else "DISABLED",
        )
    return f"changed: {', '.join(differing)}" if server else "created"


def check_entity(connection: Connection) -> None:
    """Refuse an entity that the user does not belong to.

    Raises:
        ConfigError: it names the entities that the user belongs to.
    """
    if connection.entity not in (teams := connection.teams):
        raise ConfigError(f"queue.entity={connection.entity} is none of yours; allowed: {', '.join(teams)}")


# --- the job artifact ---------------------------------------------------------------------------------------------


def job_path(connection: Connection, job: str) -> str:
    """The path of a job in W&B, `entity/project/name:alias`, also if the configuration does not name the entity."""
    name = job.rpartition("/")[2]
    return job if job.count("/") == 2 else f"{connection.home}/{name}"


def find_job(connection: Connection, path: str) -> str | None:
    """The version at a job's path, as `name:vN`; None if there is none."""
    with asking(connection.url):
        if not connection.api.artifact_exists(path, type="job"):
            return None
        artifact = connection.api.artifact(path, type="job")
        return f"{artifact.name.partition(':')[0]}:{artifact.version}"


def make_job(connection: Connection, queue: LaunchQueue, path: str) -> str:
    """Create the job artifact from the trainer's code or the configured image. Unchanged code makes no new version.

    Args:
        path: the path of the job, from `job_path`.

    Returns:
        Its version, `name:vN`.

    Raises:
        ConfigError: the resource needs an image, and none is configured.
        SweepError: wandb created none; the text has its own words.
    """
    if queue.resource != "local-process" and not queue.docker_image:
        raise ConfigError(
            f"queue.resource={queue.resource} runs images; build one from launch_queues/Dockerfile, push it, and set "
            "queue.docker_image to its name"
        )
    home, _, name = path.partition(":")[0].rpartition("/")
    with tempfile.TemporaryDirectory(prefix="sweep-job-") as folder:
        if queue.docker_image:
            words = ["image", queue.docker_image]
        else:
            stage_code(Path(folder))
            words = ["code", folder, "-E", ENTRY_POINT]
        said = _wandb(["job", "create", *words, "-n", name], home)
    version = find_job(connection, path)
    if version is None:
        raise SweepError(f"W&B created no job: {said}")
    return version


def stage_code(folder: Path) -> None:
    """Write what a code job consists of into a folder: the trainer, and the packages that it needs."""
    shutil.copytree(trainer_dir(), folder / "trainer", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()))


def requirements() -> list[str]:
    """The dependencies of this distribution, without its extras; empty if it is not installed."""
    try:
        lines = metadata.requires("sweeps-on-launch") or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def _wandb(words: list[str], home: str) -> str:
    """Run wandb's command line in a process of its own, since it starts a run with a service; returns its last line."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"WANDB_SILENT": "false", "WANDB_CONSOLE": "off"}
    entity, _, project = home.partition("/")
    line = [sys.executable, "-m", "wandb", *words, "-e", entity, "-p", project]
    try:
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=JOB_SECONDS, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise RetryLater(f"`wandb {words[0]} {words[1]}` took longer than {JOB_SECONDS:g} s; retry") from None
    said = (done.stderr + done.stdout).strip().splitlines()
    return KEYLIKE.sub("…", said[-1] if said else f"exit code {done.returncode}")[:300]
