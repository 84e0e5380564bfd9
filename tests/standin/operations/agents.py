"""Launch agents: created, heard of, told to stop polling."""

from __future__ import annotations

import time

from tests.standin.model import Agent, Json, fresh, iso
from tests.standin.operations import Call, Refusal, operation


@operation("createLaunchAgent")
def _create(call: Call) -> Json:
    number = len(call.store.agents) + 1
    agent = Agent(
        id=fresh("LaunchAgent"),
        name=f"agent-{number:03d}",
        entity=call.entity(),
        queues=list(call.need("queues")),
        hostname=call.get("hostname") or "",
        config=call.json("agentConfig") or {},
        version=call.get("version") or "",
        limits=call.store.limits,
    )
    call.store.agents[agent.id] = agent
    return {"createLaunchAgent": {"launchAgentId": agent.id}}


def find(call: Call) -> Agent:
    agent = call.store.agents.get(call.need("agentId"))
    if agent is None:
        raise Refusal("launch agent not found", 404)
    return agent


def agent_node(agent: Agent) -> Json:
    return {
        "id": agent.id,
        "name": agent.name,
        "runQueues": agent.queues,
        "hostname": agent.hostname,
        "agentStatus": agent.status,
        "stopPolling": agent.stop_polling,
        "heartbeatAt": iso(agent.heartbeat),
    }


@operation("LaunchAgent")
def _agent(call: Call) -> Json:
    """The agent asks this at every poll, so it counts as its heartbeat."""
    agent = find(call)
    agent.heartbeat = time.time()
    return {"launchAgent": agent_node(agent)}


@operation("updateLaunchAgent")
def _update(call: Call) -> Json:
    agent = find(call)
    agent.told_status, agent.heartbeat = call.need("agentStatus"), time.time()
    return {"updateLaunchAgent": {"success": True}}
