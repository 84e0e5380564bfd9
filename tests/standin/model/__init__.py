"""What the stand-in remembers."""

from tests.standin.model.artifacts import Artifact, Collection, Membership
from tests.standin.model.launch import Agent, Item, ItemState, Queue
from tests.standin.model.runs import Run, RunState
from tests.standin.model.store import Automation, Integration, Request, Store
from tests.standin.model.words import Json, Limits, fresh, identifier, iso

__all__ = [
    "Agent",
    "Artifact",
    "Automation",
    "Collection",
    "Integration",
    "Item",
    "ItemState",
    "Json",
    "Limits",
    "Membership",
    "Queue",
    "Request",
    "Run",
    "RunState",
    "Store",
    "fresh",
    "identifier",
    "iso",
]
