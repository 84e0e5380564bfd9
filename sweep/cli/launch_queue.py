"""The actions of `sweep queue`: what each does with the configured queue and with W&B.

Invariant: each action is one function; it takes the settings that the overrides compose, and returns the exit code.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sweep.config.settings import Settings
from sweep.queues.launch.agent_config import agent_text, cluster_text
from sweep.queues.launch.agents import Agent, find_agents
from sweep.queues.launch.automation import Automation
from sweep.queues.launch.automation import automate as make_automation
from sweep.queues.launch.connection import Connection, connect
from sweep.queues.launch.job_artifact import find_job, job_path, make_job
from sweep.queues.launch.jobs import job_name
from sweep.queues.launch.queue import ServerQueue, create_queue, differences, find_queue
from sweep.queues.launch.section import LaunchQueue, is_launch, launch_queue
from sweep.tracking.runs import wandb_location
from sweep.wiring.compose import compose_config, freeze


def compose(overrides: Sequence[str], config_dir: Path | None) -> Settings:
    """The settings that these overrides compose.

    Raises:
        ConfigError: the composition is refused.
    """
    return freeze(compose_config(overrides, config_dir), "queue", config_dir).settings


def connected(settings: Settings) -> tuple[LaunchQueue, Connection]:
    """The configured Launch queue, and a connection for it.

    Raises:
        ConfigError: it is a queue of another kind; or what `connect` raises.
    """
    queue = launch_queue(settings)
    return queue, connect(queue, wandb_location(settings))


def create(settings: Settings) -> int:
    """Create the queue in W&B, or change it to what is configured."""
    queue, connection = connected(settings)
    print(f"{connection.entity}/{queue.name}: {create_queue(connection, queue)}")
    return 0


def show(settings: Settings, as_json: bool) -> int:
    """Print the configured queue and, for one of Launch, what W&B has of it."""
    configured = dataclasses.asdict(settings.queue)
    on_server = _OnServer.read(settings) if is_launch(settings) else None
    if as_json:
        wandb = {"wandb": on_server.to_json()} if on_server else {}
        from sweep.report.formatting import json_text

        print(json_text({"configured": configured, **wandb}))
        return 0
    print(yaml.safe_dump(configured, sort_keys=False), end="")
    if on_server:
        print("\n".join(on_server.lines()))
    return 0


@dataclasses.dataclass(frozen=True)
class _OnServer:
    """What W&B has of a configured queue.

    Args:
        server: the queue; None: it is absent.
        agents: its agents; None: the server does not list them.
        job: the job's version or the image that a push names; empty: there is none.
        job_path: where the job is looked for.
    """

    queue: LaunchQueue
    connection: Connection
    server: ServerQueue | None
    agents: Sequence[Agent] | None
    job: str | None
    job_path: str

    @classmethod
    def read(cls, settings: Settings) -> _OnServer:
        queue, connection = connected(settings)
        server, path = find_queue(connection, queue), job_path(connection, job_name(settings))
        job = find_job(connection, path) if not queue.docker_image or queue.job else queue.docker_image
        agents = find_agents(connection, queue.name) if server else []
        return cls(queue, connection, server, agents, job, path)

    @property
    def differences(self) -> list[str]:
        """The settings in which W&B's queue differs from the configured one."""
        return differences(self.server, self.queue) if self.server else []

    def to_json(self) -> dict[str, Any]:
        return {
            "entity": self.connection.entity,
            "home": self.connection.home,
            "queue": dataclasses.asdict(self.server) if self.server else None,
            "differs": self.differences,
            "job": self.job,
            "agents": None if self.agents is None else [dataclasses.asdict(agent) for agent in self.agents],
        }

    def lines(self) -> list[str]:
        """Comments below the YAML."""
        absent = f"{self.job_path} is absent; create it with `sweep queue job queue=…`"
        return [f"# W&B at {self.connection.url}", *self._queue_lines(), f"# job: {self.job or absent}"]

    def _queue_lines(self) -> list[str]:
        name = f"{self.connection.entity}/{self.queue.name}"
        if self.server is None:
            return [f"# {name}: absent; create it with `sweep queue create queue=…`"]
        state = "as configured"
        if self.differences:
            state = f"differs in {', '.join(self.differences)}; `sweep queue create queue=…` changes it"
        items = ", ".join(f"{count} {state}" for state, count in self.server.items.items())
        no_agents = "none" if self.agents is not None else "this server does not list them"
        return [
            f"# {name}: {self.server.resource}, {state}",
            f"# items: {items or 'none'}",
            *([f"# agent: {agent}" for agent in self.agents or []] or [f"# agents: {no_agents}"]),
        ]


def job(settings: Settings) -> int:
    """Create the job artifact and print its path."""
    queue, connection = connected(settings)
    path = job_path(connection, job_name(settings))
    version = make_job(connection, queue, path)
    print(f"{path}\n# {version}")
    return 0


def agent(settings: Settings, region: str | None) -> int:
    """Print the agent's configuration file.

    Args:
        region: the cloud's, for SageMaker and Vertex AI.
    """
    queue, connection = connected(settings)
    text = agent_text(queue, connection.entity, region)
    if queue.resource == "kubernetes":
        text += "# in the cluster: `sweep queue agent queue=… --kubernetes | kubectl apply -f -`\n"
    if os.environ.get("WANDB_BASE_URL"):
        text += f"# with WANDB_BASE_URL={connection.url} in its environment\n"
    print(text, end="")
    return 0


def agent_objects(settings: Settings, namespace: str) -> int:
    """Print the Kubernetes objects that run the agent in a cluster."""
    queue, connection = connected(settings)
    print(cluster_text(queue, connection.entity, namespace, connection.url), end="")
    return 0


def automate(settings: Settings, automation: Automation) -> int:
    """Create the automation, or change the one of its name."""
    print(make_automation(connected(settings)[1], automation))
    return 0
