"""What `sweep queue ACTION` does, in terms of the other modules.

Invariant: one function an action, named like it; it takes the parsed arguments and the configured queue.
"""

from __future__ import annotations

import dataclasses
import json
import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import yaml

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.queues.launch.agent_config import agent_text, cluster_text
from sweep.queues.launch.agents import Agent, find_agents
from sweep.queues.launch.automation import Automation
from sweep.queues.launch.automation import automate as make_automation
from sweep.queues.launch.jobs import job_name
from sweep.queues.launch.queue import Connection, ServerQueue, connect, differences, find, find_job, job_path, make_job
from sweep.queues.launch.queue import create as make_queue
from sweep.queues.launch.section import LaunchQueue, is_launch, launch_queue
from sweep.tracking.runs import wandb_location
from sweep.wiring.compose import compose_config, freeze


def queue(args: Namespace) -> int:
    """The action that the first word names; `show` where it names none."""
    action: Callable[[Namespace, Settings], int] = show
    if args.overrides and args.overrides[0] in ACTIONS:
        action = ACTIONS[args.overrides.pop(0)]
    elif args.overrides and "=" not in args.overrides[0]:
        raise ConfigError(f"queue {args.overrides[0]}: there is no such action; allowed: {', '.join(ACTIONS)}")
    return action(args, freeze(compose_config(args.overrides, args.config_dir), "queue", args.config_dir).settings)


def launched(settings: Settings) -> tuple[LaunchQueue, Connection]:
    """The queue, where it is one of Launch, and a connection for it.

    Raises:
        ConfigError: it is not; or what `connect` raises.
    """
    section = launch_queue(settings)
    return section, connect(section, wandb_location(settings))


def create(args: Namespace, settings: Settings) -> int:
    wished, connection = launched(settings)
    print(f"{connection.entity}/{wished.name}: {make_queue(connection, wished)}")
    return 0


def show(args: Namespace, settings: Settings) -> int:
    found = dataclasses.asdict(settings.queue)
    if not is_launch(settings):
        print(json.dumps({"configured": found}) if args.json else yaml.safe_dump(found, sort_keys=False), end="")
        return 0
    configured, connection = launched(settings)
    server, job = find(connection, configured), job_path(connection, job_name(settings))
    version = find_job(connection, job) if not configured.docker_image or configured.job else configured.docker_image
    agents = find_agents(connection, configured.name) if server else []
    if args.json:
        seen = {
            "entity": connection.entity,
            "home": connection.home,
            "queue": dataclasses.asdict(server) if server else None,
            "differs": differences(server, configured) if server else [],
            "job": version,
            "agents": None if agents is None else [dataclasses.asdict(one) for one in agents],
        }
        print(json.dumps({"configured": found, "wandb": seen}, default=dict))
        return 0
    print(yaml.safe_dump(found, sort_keys=False), end="")
    print(f"# W&B at {connection.url}")
    print("\n".join(_queue_lines(f"{connection.entity}/{configured.name}", configured, server, agents)))
    print(f"# job: {version or f'{job} is absent; make it with `sweep queue job queue=…`'}")
    return 0


def _queue_lines(
    where: str, configured: LaunchQueue, server: ServerQueue | None, agents: list[Agent] | None
) -> list[str]:
    if server is None:
        return [f"# {where}: absent; make it with `sweep queue create queue=…`"]
    differing = differences(server, configured)
    same = "as configured"
    if differing:
        same = f"differs in {', '.join(differing)}; `sweep queue create queue=…` changes it"
    items = ", ".join(f"{count} {state}" for state, count in server.items.items())
    heard = "none" if agents is not None else "this server does not list them"
    return [
        f"# {where}: {server.resource}, {same}",
        f"# items: {items or 'none'}",
        *([f"# agent: {agent}" for agent in agents or []] or [f"# agents: {heard}"]),
    ]


def job(args: Namespace, settings: Settings) -> int:
    wished, connection = launched(settings)
    path = job_path(connection, job_name(settings))
    version = make_job(connection, wished, path)
    print(f"{path}\n# {version}")
    return 0


def agent(args: Namespace, settings: Settings) -> int:
    wished, connection = launched(settings)
    if args.kubernetes:
        print(cluster_text(wished, connection.entity, args.namespace, connection.url), end="")
        return 0
    text = agent_text(wished, connection.entity, args.region)
    if wished.resource == "kubernetes":
        text += "# in the cluster: `sweep queue agent queue=… --kubernetes | kubectl apply -f -`\n"
    if os.environ.get("WANDB_BASE_URL"):
        text += f"# with WANDB_BASE_URL={connection.url} in its environment\n"
    print(text, end="")
    return 0


def automate(args: Namespace, settings: Settings) -> int:
    automation = Automation(args.on, args.alias, args.collection, args.type, args.webhook, args.channel, args.called)
    if args.webhook is None and not args.slack:
        raise ConfigError("name what W&B shall do: --webhook NAME, or --slack")
    print(make_automation(launched(settings)[1], automation))
    return 0


ACTIONS: dict[str, Callable[[Namespace, Any], int]] = {
    "create": create,
    "show": show,
    "job": job,
    "agent": agent,
    "automate": automate,
}
