"""Checks that a queue of W&B Launch can run a sweep: key, entity, queue, agents, job.

Invariants: each look says what it found, or raises what is missing and what to do; nothing is changed in W&B. One
connection serves all looks; where there is none, the first says why and the others that they could not look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sweep.config.queues import LaunchQueue
from sweep.config.settings import Settings
from sweep.errors import SweepError
from sweep.queues.launch.agents import find_agents
from sweep.queues.launch.jobs import job_name
from sweep.queues.launch.queue import Connection, check_entity, connect, differences, find, find_job, job_path
from sweep.tracking.runs import wandb_location

Ask = Callable[[Connection, LaunchQueue], str]
START = "`sweep queue agent queue=… > launch-config.yaml`, then `wandb launch-agent --config launch-config.yaml`"


def launch_looks(settings: Settings) -> list[tuple[str, Callable[[], str]]]:
    """What to look at, by name, in an order in which the first that fails explains the others."""
    queue = settings.queue
    assert isinstance(queue, LaunchQueue)
    made: list[Connection] = []

    def key() -> str:
        made.append(connect(queue, wandb_location(settings)))
        return f"taken by {made[0].url}, runs go to {made[0].home}"

    def look(ask: Ask) -> str:
        if not made:
            raise SweepError("could not be looked at: see the W&B key above")
        return ask(made[0], queue)

    asks: dict[str, Ask] = {
        "W&B entity": _entity,
        "W&B queue": _queue,
        "W&B agent": _agent,
        "W&B job": partial(_job, job_name(settings)),
    }
    return [("W&B key", key), *((name, partial(look, ask)) for name, ask in asks.items())]


def _entity(connection: Connection, queue: LaunchQueue) -> str:
    check_entity(connection)
    return connection.entity


def _queue(connection: Connection, queue: LaunchQueue) -> str:
    found = find(connection, queue)
    where = f"{connection.entity}/{queue.name}"
    if found is None:
        raise SweepError(f"there is no queue {where}; make it with `sweep queue create queue=…`")
    if differing := differences(found, queue):
        raise SweepError(f"{where} differs in {', '.join(differing)}; change it with `sweep queue create queue=…`")
    return f"{where}: {found.resource}, {_items(found.items)}"


def _agent(connection: Connection, queue: LaunchQueue) -> str:
    found = find(connection, queue)
    if found is None:
        raise SweepError("could not be looked at: there is no queue")
    agents = find_agents(connection, queue.name)
    if agents is None:
        return _unlisted(found.items)
    if polling := [agent for agent in agents if agent.polls]:
        return "; ".join(map(str, polling[:3]))
    last = f" (the last was {agents[0]})" if agents else ""
    raise SweepError(f"no agent polls {connection.entity}/{queue.name}{last}; start one: {START}")


def _unlisted(items: Mapping[str, int]) -> str:
    """What can be told of agents where W&B lists none: from what has become of the queue's items."""
    if items.get("pending") and not (items.get("leased") or items.get("claimed")):
        raise SweepError(
            f"{items['pending']} items wait and none was ever taken, so no agent seems to poll; start one: {START}"
        )
    return f"this server does not say who polls; {_items(items)}; if jobs stay pending, start one: {START}"


def _job(job: str, connection: Connection, queue: LaunchQueue) -> str:
    if queue.docker_image:
        return f"the image {queue.docker_image}, which the agent must be able to pull"
    path = job_path(connection, job)
    version = find_job(connection, path)
    if version is None:
        raise SweepError(f"there is no job {path}; make it with `sweep queue job queue=…`")
    return f"{path} is {version}"


def _items(items: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in items.items()) or "no items"
