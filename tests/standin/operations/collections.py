"""Collections of artifacts: the sequence of a name, portfolios; aliases and links; what artifacts look like in them."""

from __future__ import annotations

import json

from tests.standin.model import Artifact, Collection, Json, Membership, Store, identifier, iso
from tests.standin.operations import Call, Refusal, everything, operation, page
from tests.standin.operations.runs import project_node


def alias_node(store: Store, collection: Collection, alias: str) -> Json:
    return {
        "__typename": "ArtifactAlias",
        "id": identifier("Alias", collection.path, alias),
        "alias": alias,
        "artifactCollection": collection_node(store, collection),
        "artifactCollectionName": collection.name,
    }


def collection_node(store: Store, collection: Collection) -> Json:
    latest = max(collection.members, key=lambda one: one.version, default=None)
    kind = {"id": identifier("Type", collection.type), "name": collection.type}
    return {
        "__typename": "ArtifactPortfolio" if collection.portfolio else "ArtifactSequence",
        "id": collection.id,
        "name": collection.name,
        "description": collection.description,
        "createdAt": iso(collection.created),
        "updatedAt": None,
        "project": project_node(store, collection.entity, collection.project),
        "type": kind,
        "defaultArtifactType": kind,
        "tags": everything(
            [{"__typename": "Tag", "id": identifier("Tag", tag), "name": tag} for tag in collection.tags]
        ),
        "digestAlgorithm": "MANIFEST_MD5",
        "latestArtifact": latest and {"id": latest.artifact, "versionIndex": latest.version},
        "state": "READY",
    }


def artifact_node(store: Store, artifact: Artifact, url: str) -> Json:
    home = store.collections[f"{artifact.entity}/{artifact.project}/{artifact.collection}"]
    aliases = [
        alias_node(store, collection, alias)
        for collection in store.collections.values()
        for member in collection.members
        if member.artifact == artifact.id
        for alias in member.aliases
    ]
    manifest = (
        f"{url}/blobs/{artifact.files['wandb_manifest.json']}" if "wandb_manifest.json" in artifact.files else None
    )
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": collection_node(store, home),
        "versionIndex": artifact.version,
        "artifactType": {"id": identifier("Type", artifact.type), "name": artifact.type},
        "description": artifact.description,
        "metadata": json.dumps(artifact.metadata),
        "ttlDurationSeconds": artifact.ttl,
        "ttlIsInherited": True,
        "tags": [{"__typename": "Tag", "id": identifier("Tag", tag), "name": tag} for tag in artifact.tags],
        "historyStep": artifact.history_step,
        "state": artifact.state,
        "size": sum(len(store.blobs.get(path, b"")) for path in artifact.files.values()),
        "digest": artifact.digest,
        "digestAlgorithm": artifact.digest_algorithm,
        "commitHash": artifact.digest[:20],
        "fileCount": len(artifact.files),
        "createdAt": iso(artifact.created),
        "updatedAt": None,
        "aliases": aliases,
        "currentManifest": {"id": artifact.manifest_id, "file": {"directUrl": manifest}} if manifest else None,
    }


def membership_node(store: Store, collection: Collection, member: Membership, url: str) -> Json:
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": member.id,
        "versionIndex": member.version,
        "createdAt": iso(member.created),
        "aliases": [alias_node(store, collection, alias) for alias in member.aliases],
        "artifactCollection": collection_node(store, collection),
        "artifact": artifact_node(store, store.artifacts[member.artifact], url),
    }


def find_member(call: Call, name: str) -> tuple[Collection, Membership] | None:
    """`collection:alias`, `collection:v3` or a collection alone, which means `latest`."""
    name, _, alias = name.partition(":")
    collection = call.store.collections.get(f"{call.entity()}/{call.project()}/{name}")
    member = collection.find(alias) if collection else None
    return (collection, member) if collection and member else None


@operation("LinkArtifact")
def _link(call: Call) -> Json:
    artifact = call.store.artifacts.get(call.get("artifactId", "artifactID") or "")
    client = call.get("clientId", "clientID")
    if artifact is None:
        artifact = next((one for one in call.store.artifacts.values() if client and one.client_id == client), None)
    if artifact is None:
        raise Refusal("artifact not found", 404)
    entity, project, name = call.entity(), call.project(), call.need("artifactPortfolioName")
    if project == "model-registry":  # of old, every entity has it
        call.store.project(entity, project)
    if f"{entity}/{project}" not in call.store.projects:
        raise Refusal(f"project {entity}/{project} not found", 404)
    path = f"{entity}/{project}/{name}"
    collection = call.store.collections.setdefault(path, Collection(entity, project, name, artifact.type, True))
    if collection.type != artifact.type:
        raise Refusal(f"{path} holds artifacts of type {collection.type}, not {artifact.type}", 400)
    member = _enter(collection, artifact.id)
    collection.name_so(member, [one["alias"] for one in call.get("aliases") or []] + ["latest"])
    result: Json = {"versionIndex": member.version}
    result["artifactMembership"] = membership_node(call.store, collection, member, call.url)
    return {"linkArtifact": result, "result": result}


def _enter(collection: Collection, artifact_id: str) -> Membership:
    """Linked again, an artifact keeps its version there."""
    found = next((one for one in collection.members if one.artifact == artifact_id), None)
    if found is None:
        found = Membership(artifact_id, len(collection.members))
        collection.members.append(found)
    return found


@operation("UnlinkArtifact")
def _unlink(call: Call) -> Json:
    portfolio = next(
        (one for one in call.store.collections.values() if one.id == call.need("artifactPortfolioID")), None
    )
    if portfolio is None:
        raise Refusal("portfolio not found", 404)
    portfolio.members = [one for one in portfolio.members if one.artifact != call.need("artifactID")]
    return {"result": {"success": True}}


@operation("AddAliases", "DeleteAliases")
def _aliases(call: Call) -> Json:
    """The aliases say which collection they belong to."""
    artifact = call.need("artifactID")
    for given in call.need("aliases"):
        entity, project = given.get("entityName") or call.entity(), given.get("projectName") or call.project()
        collection = call.store.collections.get(f"{entity}/{project}/{given['artifactCollectionName']}")
        member = next((one for one in collection.members if one.artifact == artifact), None) if collection else None
        if collection is None or member is None:
            raise Refusal(f"artifact is not in {entity}/{project}/{given['artifactCollectionName']}", 404)
        if call.name == "AddAliases":
            collection.name_so(member, [given["alias"]])
        else:
            member.aliases = [alias for alias in member.aliases if alias != given["alias"]]
    return {"result": {"success": True}}


@operation("ArtifactCollectionAliases")
def _collection_aliases(call: Call) -> Json:
    found = next((one for one in call.store.collections.values() if one.id == call.need("id")), None)
    if found is None:
        return {"artifactCollection": None}
    nodes = [alias_node(call.store, found, alias) for member in found.members for alias in member.aliases]
    return {"artifactCollection": {**collection_node(call.store, found), "aliases": page(nodes, call)}}


@operation(
    "ProjectArtifactCollection", "ProjectArtifacts", "ArtifactTypeArtifactCollections", "FetchArtifactDigestAlgorithm"
)
def _collections(call: Call) -> Json:
    """Collections of one type in a project; with a name, that one and its versions."""
    kind = call.need("type", "artifactTypeName")
    here = [
        one
        for one in call.store.collections.values()
        if (one.entity, one.project, one.type) == (call.entity(), call.project(), kind)
    ]
    name = call.get("collection", "name", "artifactCollectionName")
    one = next((one for one in here if one.name == name), None)
    node = one and {**collection_node(call.store, one), "artifacts": _versions(call, one)}
    listed = page([collection_node(call.store, one) for one in here], call)
    found = {"name": kind, "artifactCollection": node, "artifactCollections": listed}
    return {
        "project": {**project_node(call.store, call.entity(), call.project()), "artifactType": found if here else None}
    }


def _versions(call: Call, collection: Collection) -> Json:
    """The newest first."""
    members = sorted(collection.members, key=lambda one: -one.version)
    found = page([artifact_node(call.store, call.store.artifacts[one.artifact], call.url) for one in members], call)
    start = int(call.get("cursor") or 0)
    for index, edge in enumerate(found["edges"]):
        edge["version"] = f"v{members[start + index].version}"
    return found


@operation("FetchLinkedArtifacts")
def _linked(call: Call) -> Json:
    artifact = call.need("artifactID")
    nodes = [
        membership_node(call.store, collection, member, call.url)
        for collection in call.store.collections.values()
        for member in collection.members
        if member.artifact == artifact
    ]
    return {"artifact": {"artifactMemberships": everything(nodes)} if nodes else None}


@operation("ProjectArtifactTypes", "ProjectArtifactType")
def _types(call: Call) -> Json:
    here = [
        one for one in call.store.collections.values() if (one.entity, one.project) == (call.entity(), call.project())
    ]
    nodes = [
        {
            "__typename": "ArtifactType",
            "id": identifier("Type", name),
            "name": name,
            "description": None,
            "createdAt": iso(min(one.created for one in here if one.type == name)),
        }
        for name in sorted({one.type for one in here})
    ]
    one = next((node for node in nodes if node["name"] == call.get("type")), None)
    project = project_node(call.store, call.entity(), call.project())
    return {"project": {**project, "artifactTypes": page(nodes, call), "artifactType": one}}


def _named(call: Call) -> Collection:
    wanted = call.need("artifactSequenceID", "artifactPortfolioID", "id")
    found = next((one for one in call.store.collections.values() if one.id == wanted), None)
    if found is None:
        raise Refusal("collection not found", 404)
    return found


@operation("UpdateArtifactSequence", "UpdateArtifactPortfolio")
def _change(call: Call) -> Json:
    """Its description; a new name is not served."""
    collection = _named(call)
    if call.get("name") not in {None, collection.name}:
        raise Refusal("renaming a collection is not served", 400)
    collection.description = call.get("description")
    return {"result": {"artifactCollection": collection_node(call.store, collection)}}


@operation("DeleteArtifactSequence", "DeleteArtifactPortfolio")
def _delete(call: Call) -> Json:
    """With a sequence its artifacts go, wherever they were linked to."""
    collection = call.store.collections.pop(_named(call).path)
    if not collection.portfolio:
        gone = {member.artifact for member in collection.members}
        for other in call.store.collections.values():
            other.members = [member for member in other.members if member.artifact not in gone]
        for artifact in gone:
            del call.store.artifacts[artifact]
    node = collection_node(call.store, collection)
    return {"result": {"artifactCollection": {**node, "state": "DELETED"}}}
