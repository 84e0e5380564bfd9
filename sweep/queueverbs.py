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

from sweep.config import compose_config
from sweep.errors import ConfigError
from sweep.launchagent import agent_text, cluster_text
from sweep.queues import LaunchQueue, Queue
from sweep.settings import read_queue
from sweep.wandbagents import Agent, find_agents
from sweep.wandbautomation import Wish
from sweep.wandbautomation import automate as make_automation
from sweep.wandbqueue import ServerQueue, connect, differences, find, find_job, job_path, make_job
from sweep.wandbqueue import create as make_queue
from sweep.words import section_of


def queue(args: Namespace) -> int:
    """The action that the first word names; `show` where it names none."""
    action: Callable[[Namespace, Queue], int] = show
    if args.overrides and args.overrides[0] in ACTIONS:
        action = ACTIONS[args.overrides.pop(0)]
    elif args.overrides and "=" not in args.overrides[0]:
        raise ConfigError(f"queue {args.overrides[0]}: there is no such action; allowed: {', '.join(ACTIONS)}")
    return action(args, read_queue(section_of(compose_config(args.overrides, args.config_dir), "queue")))


def launched(configured: Queue) -> LaunchQueue:
    """The queue, where it is one of Launch.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(configured, LaunchQueue):
        raise ConfigError(
            f"queue.kind={configured.kind} has nothing in W&B; choose one of Launch: queue=launch_local_process"
        )
    return configured


def create(args: Namespace, configured: Queue) -> int:
    wished = launched(configured)
    connection = connect(wished)
    print(f"{connection.entity}/{wished.name}: {make_queue(connection, wished)}")
    return 0


def show(args: Namespace, configured: Queue) -> int:
    found = dataclasses.asdict(configured)
    if not isinstance(configured, LaunchQueue):
        print(json.dumps({"configured": found}) if args.json else yaml.safe_dump(found, sort_keys=False), end="")
        return 0
    connection = connect(configured)
    server, job = find(connection, configured), job_path(connection, configured)
    version = find_job(connection, job) if not configured.docker_image or configured.job else configured.docker_image
    agents = find_agents(connection, configured.name) if server else []
    if args.json:
        seen = {
            "entity": connection.entity,
            "project": connection.project,
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
    print(f"# job: {version or f'{job} is absent; make it with `sweep queue job`'}")
    return 0


def _queue_lines(
    where: str, configured: LaunchQueue, server: ServerQueue | None, agents: list[Agent] | None
) -> list[str]:
    if server is None:
        return [f"# {where}: absent; make it with `sweep queue create`"]
    differing = differences(server, configured)
    same = f"differs in {', '.join(differing)}; `sweep queue create` changes it" if differing else "as configured"
    items = ", ".join(f"{count} {state}" for state, count in server.items.items())
    heard = "none" if agents is not None else "this server does not list them"
    return [
        f"# {where}: {server.resource}, {same}",
        f"# items: {items or 'none'}",
        *([f"# agent: {agent}" for agent in agents or []] or [f"# agents: {heard}"]),
    ]


def job(args: Namespace, configured: Queue) -> int:
    wished = launched(configured)
    path, version = make_job(connect(wished), wished)
    print(f"{path}\n# {version}; a push takes it by queue.job={path}")
    return 0


def agent(args: Namespace, configured: Queue) -> int:
    wished = launched(configured)
    connection = connect(wished)
    if args.kubernetes:
        print(cluster_text(wished, connection.entity, args.namespace, connection.url), end="")
        return 0
    text = agent_text(wished, connection.entity, args.region)
    if wished.resource == "kubernetes":
        text += "# in the cluster: `sweep queue agent --kubernetes | kubectl apply -f -`\n"
    if os.environ.get("WANDB_BASE_URL"):
        text += f"# with WANDB_BASE_URL={connection.url} in its environment\n"
    print(text, end="")
    return 0


def automate(args: Namespace, configured: Queue) -> int:
    wish = Wish(args.on, args.alias, args.collection, args.type, args.webhook, args.channel, args.called)
    if args.webhook is None and not args.slack:
        raise ConfigError("name what W&B shall do: --webhook NAME, or --slack")
    print(make_automation(connect(launched(configured)), wish))
    return 0


ACTIONS: dict[str, Callable[[Namespace, Any], int]] = {
    "create": create,
    "show": show,
    "job": job,
    "agent": agent,
    "automate": automate,
}
