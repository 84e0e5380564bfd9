"""Who asks, and what the server can do."""

from __future__ import annotations

from tests.standin.model import Json, Store, identifier
from tests.standin.operations import Call, everything, operation


def viewer(store: Store) -> Json:
    return {
        "__typename": "User",
        "id": identifier("User", store.user),
        "entity": store.entity,
        "username": store.user,
        "name": store.user,
        "email": f"{store.user}@example.invalid",
        "flags": "{}",
        "admin": False,
        "deletedAt": None,
        "apiKeys": everything([]),
        "teams": everything([{"name": store.entity}]),
        "organizations": [organization(store)],
    }


def organization(store: Store) -> Json:
    return {
        "id": identifier("Organization", store.organization),
        "name": store.organization,
        "coreWeaveOrganizationId": None,
        "orgEntity": {
            "__typename": "Entity",
            "id": identifier("Entity", store.organization),
            "name": store.organization,
            "entityType": "organization",
        },
        "featureFlags": [],
        "advancedRegistryFeatures": {"advancedSearch": False},
    }


def entity_node(store: Store, name: str) -> Json:
    return {
        "__typename": "Entity",
        "id": identifier("Entity", name),
        "name": name,
        "entityType": "organization" if name == store.organization else "team",
        "isTeam": True,
        "organization": organization(store),
        "user": None,
        "available": False,
        "photoUrl": None,
        "readOnly": False,
        "readOnlyAdmin": False,
        "privateOnly": False,
        "storageBytes": 0,
        "codeSavingEnabled": False,
        "defaultAccess": "USER_READ",
        "isPaid": True,
        "members": [],
        "xxhashDigestsEnabled": False,
    }


@operation("Viewer", "GetViewer", "GetDefaultEntity")
def _viewer(call: Call) -> Json:
    return {"viewer": viewer(call.store) if call.who else None}


@operation("ServerFeaturesQuery", "ServerFeatures")
def _features(call: Call) -> Json:
    return {"serverInfo": {"features": [{"name": name, "isEnabled": True} for name in sorted(call.store.features)]}}


@operation("ServerInfo")
def _server(call: Call) -> Json:
    return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "0.31.0"}, "latestLocalVersionInfo": None}}


@operation(
    "EntityIsTeam",
    "GetTeamEntity",
    "OrganizationCoreWeaveOrganizationID",
    "FetchOrgEntityFromEntity",
    "FetchOrgInfoFromEntity",
    "XXHashDigestsEnabled",
)
def _entity(call: Call) -> Json:
    name = str(call.need("entity", "entityName", "name"))
    known = {call.store.entity, call.store.organization, *(path.split("/")[0] for path in call.store.projects)}
    return {"entity": entity_node(call.store, name) if name in known else None}


@operation("OrgFeatureFlags", "FetchOrganization", "FetchAdvancedRegistryFeatures")
def _organization(call: Call) -> Json:
    known = call.need("org", "organization") == call.store.organization
    return {"organization": organization(call.store) if known else None}
