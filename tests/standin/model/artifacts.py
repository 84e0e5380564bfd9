"""Artifacts, and the collections that they are in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tests.standin.model.words import Json, identifier


@dataclass
class Membership:
    """An artifact in a collection: in its own sequence, or linked to a portfolio."""

    artifact: str
    version: int
    aliases: list[str] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return identifier("Membership", self.artifact, self.version)


@dataclass
class Collection:
    entity: str
    project: str
    name: str
    type: str
    portfolio: bool = False
    description: str | None = None
    tags: list[str] = field(default_factory=list)
    members: list[Membership] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return identifier("Portfolio" if self.portfolio else "Sequence", self.entity, self.project, self.name)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"

    def find(self, alias: str) -> Membership | None:
        wanted = alias or "latest"
        return next((one for one in self.members if wanted == f"v{one.version}" or wanted in one.aliases), None)

    def name_so(self, member: Membership, aliases: list[str]) -> None:
        """An alias names one member at a time."""
        for other in self.members:
            other.aliases = [alias for alias in other.aliases if alias not in aliases or other is member]
        member.aliases = list(dict.fromkeys([*member.aliases, *aliases]))


@dataclass
class Artifact:
    id: str
    entity: str
    project: str
    collection: str
    type: str
    digest: str
    version: int
    client_id: str | None = None
    state: str = "PENDING"
    description: str | None = None
    metadata: Json = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    history_step: int | None = None
    ttl: int = -2
    digest_algorithm: str = "MANIFEST_MD5"
    manifest_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # name -> path of the blob
    logged_by: str | None = None  # path of a run
    used_by: list[str] = field(default_factory=list)  # paths of runs
    created: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.version}"

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"
