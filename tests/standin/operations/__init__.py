"""The GraphQL operations, by name. A handler gets the call and returns its `data`; it runs under the store's lock.

An answer holds all fields of the things it names, whichever were asked for: clients ignore what they did not ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.standin.model import Json, Store


class Refusal(Exception):
    """An answer that is an error, with its HTTP status."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """One GraphQL request."""

    name: str
    variables: Json
    query: str
    store: Store
    url: str
    who: str

    def get(self, *names: str) -> Any:
        """The first of these variables (or fields of `$input`) that is there and not null."""
        given = {**self.variables, **(self.variables.get("input") or {})}
        return next((given[name] for name in names if given.get(name) is not None), None)

    def need(self, *names: str) -> Any:
        found = self.get(*names)
        if found is None:
            raise Refusal(f"{self.name}: {names[0]} is missing", 400)
        return found

    def entity(self) -> str:
        return str(self.get("entity", "entityName") or self.store.entity)

    def project(self) -> str:
        return str(self.get("project", "projectName") or "uncategorized")

    def json(self, *names: str) -> Any:
        """A variable that travels as JSON text."""
        found = self.get(*names)
        return json.loads(found) if isinstance(found, str) else found


Handler = Callable[[Call], Json]
HANDLERS: dict[str, Handler] = {}


def operation(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            assert name not in HANDLERS, name
            HANDLERS[name] = handler
        return handler

    return register


def page(nodes: list[Json], call: Call) -> Json:
    """A connection: those of `nodes` after the cursor, as many as asked for; a cursor is an index."""
    start = int(call.get("cursor", "after", "fileCursor") or 0)
    count = int(call.get("perPage", "first", "fileLimit") or 50)
    some = nodes[start : start + count]
    more = start + count < len(nodes)
    edges = [{"node": node, "cursor": str(start + index + 1)} for index, node in enumerate(some)]
    info = {"__typename": "PageInfo", "endCursor": str(start + len(some)), "hasNextPage": more}
    return {"edges": edges, "pageInfo": info, "totalCount": len(nodes)}


def everything(nodes: list[Json]) -> Json:
    """A connection of one page."""
    info = {"__typename": "PageInfo", "endCursor": str(len(nodes)), "hasNextPage": False}
    edges = [{"node": node, "cursor": str(index + 1)} for index, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": info, "totalCount": len(nodes)}


def load() -> None:
    """Register all handlers."""
    from tests.standin.operations import (  # noqa: F401
        agents,
        artifacts,
        automations,
        collections,
        history,
        identity,
        introspection,
        queues,
        registry,
        runs,
    )
