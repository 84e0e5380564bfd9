"""Checks that a queue of W&B Launch can run a sweep: the API key, the entity, the queue, its agents and its job.

Invariants: a check returns what it found, or raises what is missing and what to do. Nothing is changed in W&B. All
checks share one connection; without one the first check says why, and the others that they were not made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sweep.config.settings import Settings
from sweep.errors import SweepError
from sweep.queues.backend import NamedCheck
from sweep.queues.launch.agents import find_agents
from sweep.queues.launch.connection import Connection, connect
from sweep.queues.launch.job_artifact import find_job, job_path
from sweep.queues.launch.jobs import job_name
from sweep.queues.launch.queue import check_entity, differences, find_queue
from sweep.queues.launch.section import LaunchQueue, launch_queue
from sweep.tracking.runs import wandb_location

ConnectedCheck = Callable[[Connection, LaunchQueue], str]
START = "`sweep queue agent queue=… > launch-config.yaml`, then `wandb launch-agent --config launch-config.yaml`"


def launch_checks(settings: Settings) -> list[NamedCheck]:
    """The checks by name; the first that fails explains those after it.

    Raises:
        ConfigError: the queue is of another kind.
    """
    queue = launch_queue(settings)
    connections: list[Connection] = []

    def key() -> str:
        connections.append(connect(queue, wandb_location(settings)))
        return f"accepted by {connections[0].url}, runs go to {connections[0].home}"

    def connected(check: ConnectedCheck) -> str:
        if not connections:
            raise SweepError("not checked: see the W&B key above")
        return check(connections[0], queue)

    checks: dict[str, ConnectedCheck] = {
        "W&B entity": _entity,
        "W&B queue": _queue,
        "W&B agent": _agent,
        "W&B job": partial(_job, job_name(settings)),
    }
    return [("W&B key", key), *((name, partial(connected, check)) for name, check in checks.items())]


def _entity(connection: Connection, queue: LaunchQueue) -> str:
    check_entity(connection)
    return connection.entity


def _queue(connection: Connection, queue: LaunchQueue) -> str:
    server = find_queue(connection, queue)
    path = f"{connection.entity}/{queue.name}"
    if server is None:
        raise SweepError(f"there is no queue {path}; create it with `sweep queue create queue=…`")
    if differing := differences(server, queue):
        raise SweepError(f"{path} differs in {', '.join(differing)}; change it with `sweep queue create queue=…`")
    return f"{path}: {server.resource}, {_items(server.items)}"


def _agent(connection: Connection, queue: LaunchQueue) -> str:
    server = find_queue(connection, queue)
    if server is None:
        raise SweepError("not checked: there is no queue")
    agents = find_agents(connection, queue.name)
    if agents is None:
        return _unlisted(server.items)
    if polling := [agent for agent in agents if agent.polls]:
        return "; ".join(map(str, polling[:3]))
    last = f" (the last was {agents[0]})" if agents else ""
    raise SweepError(f"no agent polls {connection.entity}/{queue.name}{last}; start one: {START}")


def _unlisted(items: Mapping[str, int]) -> str:
    """What the states of the queue's items say of its agents, if this server does not list agents."""
    if items.get("pending") and not (items.get("leased") or items.get("claimed")):
        raise SweepError(
            f"{items['pending']} items wait and none was ever taken, so no agent seems to poll; start one: {START}"
        )
    return f"this server does not list agents; {_items(items)}; if jobs stay pending, start one: {START}"


def _job(job: str, connection: Connection, queue: LaunchQueue) -> str:
    if queue.docker_image:
        return f"the image {queue.docker_image}, which the agent must be able to pull"
    path = job_path(connection, job)
    version = find_job(connection, path)
    if version is None:
        raise SweepError(f"there is no job {path}; create it with `sweep queue job queue=…`")
    return f"{path} is {version}"


def _items(items: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in items.items()) or "no items"
