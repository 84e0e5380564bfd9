"""The organization's registries: projects of its own, whose collections are portfolios."""

from __future__ import annotations

from tests.standin.model import Json, Store
from tests.standin.operations import Call, everything, operation, page
from tests.standin.operations.collections import collection_node, membership_node
from tests.standin.operations.identity import organization
from tests.standin.operations.runs import project_node

REGISTRY = "wandb-registry-"


def is_registry(store: Store, entity: str, project: str) -> bool:
    return entity == store.organization and project.startswith(REGISTRY)


def registry_node(store: Store, project: str) -> Json:
    types = sorted({one.type for one in store.collections.values() if one.project == project})
    return {
        **project_node(store, store.organization, project),
        "description": "",
        "updatedAt": None,
        "access": "PRIVATE",
        "allowAllArtifactTypes": True,
        "artifactTypes": everything([{"name": name} for name in types]),
    }


@operation("FetchRegistry")
def _registry(call: Call) -> Json:
    project = call.get("name") or ""
    known = is_registry(call.store, call.entity(), project) and f"{call.entity()}/{project}" in call.store.projects
    return {"entity": {"project": registry_node(call.store, project) if known else None}}


@operation("FetchRegistries")
def _registries(call: Call) -> Json:
    pairs = [path.split("/") for path in call.store.projects]
    found = [
        registry_node(call.store, project) for entity, project in pairs if is_registry(call.store, entity, project)
    ]
    node = organization(call.store)
    return {"organization": {**node, "orgEntity": {**node["orgEntity"], "projects": page(found, call)}}}


@operation("UpsertRegistry")
def _create_registry(call: Call) -> Json:
    name = call.need("name")
    new = f"{call.store.organization}/{name}" not in call.store.projects
    call.store.project(call.store.organization, name)
    return {"upsertModel": {"inserted": new, "project": registry_node(call.store, name)}}


@operation("RegistryCollections")
def _registry_collections(call: Call) -> Json:
    found = [
        collection_node(call.store, one)
        for one in call.store.collections.values()
        if is_registry(call.store, one.entity, one.project)
    ]
    node = organization(call.store)
    return {"organization": {**node, "orgEntity": {**node["orgEntity"], "artifactCollections": page(found, call)}}}


@operation("RegistryVersions")
def _registry_versions(call: Call) -> Json:
    found = [
        membership_node(call.store, one, member, call.url)
        for one in call.store.collections.values()
        if is_registry(call.store, one.entity, one.project)
        for member in one.members
    ]
    node = organization(call.store)
    return {"organization": {**node, "orgEntity": {**node["orgEntity"], "artifactMemberships": page(found, call)}}}
