"""A queue of W&B Launch as W&B has it: made, looked at, and given a job artifact.

Invariants: what goes wrong with W&B is told in a sentence with what to do, and never with a key; every act may be
repeated. wandb is imported as a connection is made, and never before. `_service_api` is private to wandb: it is used
where its public client would ask one question for each queue item, and wandb's version is pinned.
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
UNANSWERED = "did not respond in time"  # of wandb's service, which has tried again for a while
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
    """What W&B has under a queue's name.

    Args:
        template: the resource configuration, template variables unfilled.
        variables: JSON schema by template variable.
        items: how many items are in which state, the newest hundred; pending, leased, claimed, failed.
    """

    resource: str
    template: Mapping[str, Any]
    variables: Mapping[str, Any]
    prioritization: bool
    items: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Connection:
    """A client that W&B has let in.

    Args:
        entity: who owns the queue.
        home: where runs and the job artifact are, `entity/project`.
    """

    api: Any
    url: str
    entity: str
    home: str

    @property
    def teams(self) -> list[str]:
        """Who may own a queue: the user, and the user's teams."""
        with asking(self.url):
            viewer = self.api.viewer
            return sorted({viewer.entity, viewer.username, *viewer.teams} - {None})


def connect(queue: LaunchQueue, place: WandbLocation) -> Connection:
    """A connection to the W&B of this machine's settings, as the user of its key.

    Raises:
        ConfigError: no key, one that W&B does not take, or no entity.
        RetryLater: W&B does not answer.
    """
    import wandb

    url = str(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).rstrip("/")
    with asking(url):
        api = wandb.Api()
        runs = place.entity or api.settings["entity"] or api.default_entity
    if not runs:
        raise ConfigError(f"W&B at {url} names no default entity for this key; set wandb.entity to your user or team")
    return Connection(api, url, str(queue.entity or runs), f"{runs}/{place.project}")


@contextmanager
def asking(url: str) -> Iterator[None]:
    """What wandb raises inside, as an error of ours."""
    from wandb.errors import AuthenticationError, Error, UsageError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except AuthenticationError as error:
        if UNANSWERED in str(error):
            raise _answerless(url) from None
        raise ConfigError(
            f"W&B at {url} does not take the API key ({_said(error)}); set WANDB_API_KEY, or `wandb login --relogin`"
        ) from None
    except UsageError as error:
        if "API key" in str(error) or "authentication" in str(error):
            raise ConfigError(f"no API key for W&B at {url}; set WANDB_API_KEY, or run `wandb login`") from None
        raise ConfigError(f"W&B's client refuses: {_said(error)}") from None
    except (Error, WandbApiFailedError) as error:
        raise _answerless(url) if UNANSWERED in str(error) else _refusal(url, error) from None


def _answerless(url: str) -> RetryLater:
    """The client tries again by itself for a while, so whatever it tried has lasted."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), timeout=3.0).close()
    except OSError as error:
        return RetryLater(f"W&B at {url} cannot be reached ({error}); check WANDB_BASE_URL and the network, try again")
    return RetryLater(
        f"W&B at {url} takes connections but answers no request: it is overloaded, or limits yours (429); "
        "try again in a minute"
    )


def _refusal(url: str, error: Exception) -> SweepError:
    said = _said(error)
    if "429" in said or "rate limit" in said.lower():
        return RetryLater(f"W&B at {url} limits your requests ({said}); try again in a minute")
    return SweepError(f"W&B at {url} refuses: {said}")


def _said(error: Exception) -> str:
    """The first line of an error, without anything that could be a key."""
    text = str(getattr(error, "message", "") or error).strip()
    return KEYLIKE.sub("…", text.splitlines()[0] if text else type(error).__name__)[:300]


def find(connection: Connection, queue: LaunchQueue) -> ServerQueue | None:
    """The queue as W&B has it; nothing where there is none."""
    with asking(connection.url):
        found = connection.api.run_queue(connection.entity, queue.name)
        asked = {"projectName": QUEUES_PROJECT, "entityName": connection.entity, "runQueue": queue.name}
        project = connection.api._service_api.execute_graphql(ITEMS, asked)["project"]
        if not project or not project["runQueue"]:
            return None
        states = [edge["node"]["state"].lower() for edge in project["runQueue"]["runQueueItems"]["edges"]]
        raw = found.default_resource_config
        config = json.loads(raw) if isinstance(raw, str) else raw
        return ServerQueue(
            found.type,
            (config or {}).get("resource_args", {}).get(found.type, {}),
            {entry["name"]: json.loads(entry["schema"]) for entry in found.template_variables or []},
            found.prioritization_mode == "V0",
            {state: states.count(state) for state in sorted(set(states))},
        )


def wanted(queue: LaunchQueue) -> ServerQueue:
    """What the configuration asks W&B to have."""
    schemas = {name: dict(entry["schema"]) for name, entry in queue.template_variables.items()}
    return ServerQueue(queue.resource, queue.template, schemas, queue.prioritization)


def differences(found: ServerQueue, queue: LaunchQueue) -> list[str]:
    """The words of the configuration in which W&B's queue differs from it."""
    ours = wanted(queue)
    pairs = {
        "resource": (found.resource, ours.resource),
        "template": (found.template, ours.template),
        "template_variables": (found.variables, ours.variables),
        "prioritization": (found.prioritization, ours.prioritization),
    }
    return [name for name, (theirs, mine) in pairs.items() if theirs != mine]


def create(connection: Connection, queue: LaunchQueue) -> str:
    """Make the queue, or change it to what the configuration says; returns what was done, in words.

    Raises:
        ConfigError: an entity that is not the user's, or a queue of this name for another resource.
    """
    if queue.project_queue not in (None, QUEUES_PROJECT):
        raise ConfigError(
            f"queue.project_queue={queue.project_queue}: W&B's client makes queues in {QUEUES_PROJECT} only; set it to "
            "null, or make the queue in W&B's own pages"
        )
    check_entity(connection)
    found = find(connection, queue)
    differing = differences(found, queue) if found else []
    if found and found.resource != queue.resource:
        where = f"{connection.entity}/{queue.name}"
        raise ConfigError(f"W&B has a queue {where} already, for {found.resource}; choose another queue.name")
    if found and not differing:
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
    return f"changed: {', '.join(differing)}" if found else "made"


def check_entity(connection: Connection) -> None:
    """Refuse an entity that the user does not belong to.

    Raises:
        ConfigError: naming those that the user does.
    """
    if connection.entity not in (teams := connection.teams):
        raise ConfigError(f"queue.entity={connection.entity} is none of yours; allowed: {', '.join(teams)}")


# --- the job artifact ---------------------------------------------------------------------------------------------


def job_path(connection: Connection, job: str) -> str:
    """A job as W&B finds it, `entity/project/name:alias`, where the configuration leaves the entity to the key."""
    name = job.rpartition("/")[2]
    return job if job.count("/") == 2 else f"{connection.home}/{name}"


def find_job(connection: Connection, path: str) -> str | None:
    """The version that a job's path means, as `name:vN`; nothing where there is none."""
    with asking(connection.url):
        if not connection.api.artifact_exists(path, type="job"):
            return None
        artifact = connection.api.artifact(path, type="job")
        return f"{artifact.name.partition(':')[0]}:{artifact.version}"


def make_job(connection: Connection, queue: LaunchQueue, path: str) -> str:
    """Build the job artifact: of the trainer's code, or of the configured image; unchanged code makes no new version.

    Args:
        path: the job's, as `job_path` gives it.

    Returns:
        Its version, `name:vN`.

    Raises:
        ConfigError: a resource that needs an image has none configured.
        SweepError: wandb made none, in its own words.
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
        raise SweepError(f"W&B made no job: {said}")
    return version


def stage_code(folder: Path) -> None:
    """What a job of code consists of: the trainer, and what it needs installed."""
    shutil.copytree(trainer_dir(), folder / "trainer", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()))


def requirements() -> list[str]:
    """This distribution's dependencies; empty where it was not installed."""
    try:
        found = metadata.requires("sweeps-on-launch") or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in found if "extra ==" not in line]


def _wandb(words: list[str], home: str) -> str:
    """Run wandb's command line beside us: it starts a run, whose service must not become ours. What it said last."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"WANDB_SILENT": "false", "WANDB_CONSOLE": "off"}
    entity, _, project = home.partition("/")
    line = [sys.executable, "-m", "wandb", *words, "-e", entity, "-p", project]
    try:
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=JOB_SECONDS, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise RetryLater(f"`wandb {words[0]} {words[1]}` took longer than {JOB_SECONDS:g} s; try again") from None
    said = (done.stderr + done.stdout).strip().splitlines()
    return KEYLIKE.sub("…", said[-1] if said else f"exit code {done.returncode}")[:300]
