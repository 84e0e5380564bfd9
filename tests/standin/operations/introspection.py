"""What the schema says of agents. wandb's client has no question for them, so a server here lists none, unless told to.

With the feature `LISTS_AGENTS` (a name of ours) the schema has a field for them. How a real server names it we do not
know, which is why the program asks.
"""

from __future__ import annotations

from tests.standin.model import Json
from tests.standin.operations import Call, everything, operation
from tests.standin.operations.agents import agent_node

LISTS_AGENTS = "LISTS_AGENTS"


def named(name: str, kind: str = "OBJECT") -> Json:
    return {"name": name, "kind": kind, "ofType": None}


@operation("LaunchAgentFields")
def _fields(call: Call) -> Json:
    plain = {"name": "id", "args": [], "type": {"name": None, "kind": "NON_NULL", "ofType": named("ID", "SCALAR")}}
    one = {"name": "launchAgent", "args": [{"type": {"kind": "NON_NULL"}}], "type": named("LaunchAgent")}
    agents = {"name": "agentsHere", "args": [{"type": {"kind": "SCALAR"}}], "type": named("LaunchAgentConnection")}
    project = [plain, one, *([agents] if LISTS_AGENTS in call.store.features else [])]
    return {"RunQueue": {"fields": [plain]}, "Project": {"fields": project}, "Entity": {"fields": [plain]}}


@operation("LaunchAgents")
def _agents(call: Call) -> Json:
    """As the one field above promises."""
    assert "agentsHere" in call.query
    return {"project": {"agentsHere": everything([agent_node(agent) for agent in call.store.agents.values()])}}
