"""Artifacts: created with their manifest and files, committed, used, described, found, and whose they are."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

from tests.standin.model import Artifact, Collection, Json, Membership, Run, identifier, iso
from tests.standin.operations import Call, Refusal, everything, operation, page
from tests.standin.operations.collections import artifact_node, find_member, membership_node
from tests.standin.operations.runs import find_run, in_project, project_node

MANIFEST = "wandb_manifest.json"


@operation("CreateArtifact")
def _create(call: Call) -> Json:
    """The same digest in the same collection is the same artifact, committed or not."""
    names = call.get("artifactCollectionNames") or [call.need("artifactCollectionName")]
    entity, project, kind = call.entity(), call.project(), call.need("artifactTypeName")
    call.store.project(entity, project)
    path = f"{entity}/{project}/{names[0]}"
    collection = call.store.collections.setdefault(path, Collection(entity, project, names[0], kind))
    if collection.type != kind:
        raise Refusal(f"{path} holds artifacts of type {collection.type}, not {kind}", 400)
    latest = max(collection.members, key=lambda one: one.version, default=None)
    artifact = _same(call, collection)
    if artifact is None:
        artifact = _new(call, collection)
    else:
        _again(call, artifact)
    previous = latest and {"id": latest.artifact, "versionIndex": latest.version}
    node = artifact_node(call.store, artifact, call.url)
    node["artifactSequence"]["latestArtifact"] = previous
    return {"createArtifact": {"artifact": node}}


def _same(call: Call, collection: Collection) -> Artifact | None:
    inside = [call.store.artifacts[one.artifact] for one in collection.members]
    return next((one for one in inside if one.digest == call.need("digest")), None)


def _new(call: Call, collection: Collection) -> Artifact:
    run = call.get("runName")
    artifact = Artifact(
        id=identifier("Artifact", uuid.uuid4().hex[:12]),
        entity=collection.entity,
        project=collection.project,
        collection=collection.name,
        type=collection.type,
        digest=call.need("digest"),
        version=len(collection.members),
        client_id=call.get("clientID"),
        description=call.get("description"),
        metadata=call.json("metadata") or {},
        tags=[one["tagName"] for one in call.get("tags") or []],
        history_step=call.get("historyStep"),
        digest_algorithm=call.get("digestAlgorithm") or "MANIFEST_MD5",
        logged_by=run and f"{collection.entity}/{collection.project}/{run}",
    )
    call.store.artifacts[artifact.id] = artifact
    collection.members.append(Membership(artifact.id, artifact.version))
    collection.name_so(collection.members[-1], [one["alias"] for one in call.get("aliases") or []] + ["latest"])
    return artifact


def _again(call: Call, artifact: Artifact) -> None:
    """Logged once more with other aliases: they move to this version. A draft becomes this client's."""
    if artifact.state != "COMMITTED":
        artifact.client_id = call.get("clientID") or artifact.client_id
        artifact.metadata = call.json("metadata") or artifact.metadata
    collection = call.store.collections[f"{artifact.entity}/{artifact.project}/{artifact.collection}"]
    member = next(one for one in collection.members if one.artifact == artifact.id)
    collection.name_so(member, [one["alias"] for one in call.get("aliases") or []])


def find(call: Call, *names: str) -> Artifact:
    artifact = call.store.artifacts.get(call.need(*(names or ("artifactID", "id", "artifact_id"))))
    if artifact is None:
        raise Refusal("artifact not found", 404)
    return artifact


@operation("CreateArtifactManifest")
def _create_manifest(call: Call) -> Json:
    artifact = find(call)
    artifact.manifest_id = identifier("Manifest", artifact.id)
    return {"createArtifactManifest": {"artifactManifest": _manifest_node(call, artifact)}}


@operation("UpdateArtifactManifest")
def _update_manifest(call: Call) -> Json:
    wanted = call.need("artifactManifestID")
    artifact = next((one for one in call.store.artifacts.values() if one.manifest_id == wanted), None)
    if artifact is None:
        raise Refusal("manifest not found", 404)
    return {"updateArtifactManifest": {"artifactManifest": _manifest_node(call, artifact)}}


def _manifest_node(call: Call, artifact: Artifact) -> Json:
    path = artifact.files.setdefault(MANIFEST, f"{uuid.uuid4().hex}/{MANIFEST}")
    return {
        "id": artifact.manifest_id,
        "file": {
            "id": identifier("File", path),
            "uploadUrl": f"{call.url}/blobs/{path}",
            "uploadHeaders": [],
            "directUrl": f"{call.url}/blobs/{path}",
        },
    }


@operation("CreateArtifactFiles")
def _create_files(call: Call) -> Json:
    edges = []
    for given in call.need("artifactFiles"):
        artifact = call.store.artifacts[given["artifactID"]]
        path = f"{uuid.uuid4().hex}/{given['name']}"
        artifact.files[given["name"]] = path
        node = {
            "id": identifier("File", path),
            "name": given["name"],
            "displayName": given["name"],
            "storagePath": path,
            "uploadUrl": f"{call.url}/blobs/{quote(path)}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifact.id},
        }
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


@operation("CommitArtifact")
def _commit(call: Call) -> Json:
    artifact = find(call)
    artifact.state = "COMMITTED"
    return {"commitArtifact": {"artifact": artifact_node(call.store, artifact, call.url)}}


@operation("UseArtifact")
def _use(call: Call) -> Json:
    artifact = find(call)
    run = call.store.run(f"{call.entity()}/{call.project()}/{call.need('runName')}")
    if run is None:
        raise Refusal("run not found", 404)
    if run.path not in artifact.used_by:
        artifact.used_by.append(run.path)
    return {"useArtifact": {"artifact": artifact_node(call.store, artifact, call.url)}}


@operation("UpdateArtifact")
def _update(call: Call) -> Json:
    artifact = find(call)
    if (metadata := call.json("metadata")) is not None:
        artifact.metadata = metadata
    if (description := call.get("description")) is not None:
        artifact.description = description
    if (lifetime := call.get("ttlDurationSeconds")) is not None:
        artifact.ttl = lifetime
    for tag in call.get("tagsToAdd") or []:
        artifact.tags = sorted({*artifact.tags, tag["tagName"]})
    for tag in call.get("tagsToDelete") or []:
        artifact.tags = [one for one in artifact.tags if one != tag["tagName"]]
    result = {"artifact": artifact_node(call.store, artifact, call.url)}
    return {"updateArtifact": result, "result": result}


@operation("DeleteArtifact")
def _delete(call: Call) -> Json:
    artifact = find(call)
    holding = [
        (collection, member)
        for collection in call.store.collections.values()
        for member in collection.members
        if member.artifact == artifact.id
    ]
    if any(set(member.aliases) for _, member in holding) and not call.get("deleteAliases"):
        raise Refusal("cannot delete an artifact that has an alias", 400)
    for collection, member in holding:
        collection.members.remove(member)
    del call.store.artifacts[artifact.id]
    return {"result": {"artifact": {"id": artifact.id}}}


@operation("ClientIDMapping")
def _client_id(call: Call) -> Json:
    client = call.need("clientID")
    found = next((one for one in call.store.artifacts.values() if one.client_id == client), None)
    return {"clientIDMapping": found and {"serverID": found.id}}


@operation("ArtifactByID", "ArtifactManifest", "FetchArtifactManifest")
def _by_id(call: Call) -> Json:
    artifact = call.store.artifacts.get(call.need("id", "artifact_id"))
    return {"artifact": artifact and artifact_node(call.store, artifact, call.url)}


@operation("ArtifactMembershipByName", "ArtifactByName", "ArtifactType")
def _by_name(call: Call) -> Json:
    found = find_member(call, call.need("name"))
    if found is None:
        return in_project(call, artifactCollectionMembership=None, artifact=None)
    node = membership_node(call.store, *found, call.url)
    return in_project(call, artifactCollectionMembership=node, artifact=node["artifact"])


@operation("ArtifactFileURLsByManifestEntries")
def _urls_by_entries(call: Call) -> Json:
    artifact = find(call)
    names = [entry["name"] for entry in call.get("entries") or []]
    nodes = [_file_node(call, artifact, name) for name in names if name in artifact.files]
    return {"artifact": {"filesByManifestEntries": everything(nodes)}}


@operation("ArtifactMembershipFiles", "GetArtifactMembershipFileUrls")
def _membership_files(call: Call) -> Json:
    found = find_member(call, f"{call.need('collection')}:{call.get('alias') or ''}")
    if found is None:
        return in_project(call, artifactCollection=None)
    artifact = call.store.artifacts[found[1].artifact]
    wanted = call.get("fileNames")
    names = [name for name in artifact.files if name != MANIFEST and (not wanted or name in wanted)]
    files = page([_file_node(call, artifact, name) for name in names], call)
    kind = "ArtifactPortfolio" if found[0].portfolio else "ArtifactSequence"
    return in_project(call, artifactCollection={"__typename": kind, "artifactMembership": {"files": files}})


def _file_node(call: Call, artifact: Artifact, name: str) -> Json:
    path = artifact.files[name]
    url = f"{call.url}/blobs/{quote(path)}"
    return {
        "__typename": "File",
        "id": identifier("File", path),
        "name": name,
        "displayName": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": len(call.store.blobs.get(path, b"")),
        "storagePath": path,
        "mimetype": None,
        "updatedAt": iso(artifact.created),
        "digest": "",
        "md5": "",
    }


def _run_info(call: Call, path: str) -> Json:
    entity, project, name = path.split("/")
    node = project_node(call.store, entity, project)
    storage_id = identifier("Run", "v1", name, project, entity)
    return {"__typename": "Run", "id": storage_id, "name": name, "project": node}


@operation("ArtifactCreatedBy")
def _created_by(call: Call) -> Json:
    artifact = find(call)
    return {"artifact": {"createdBy": _run_info(call, artifact.logged_by) if artifact.logged_by else None}}


@operation("ArtifactUsedBy")
def _used_by(call: Call) -> Json:
    return {"artifact": {"usedBy": everything([_run_info(call, path) for path in find(call).used_by])}}


@operation("RunOutputArtifacts", "RunInputArtifacts")
def _of_run(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        return in_project(call, run=None)
    nodes = [artifact_node(call.store, one, call.url) for one in _linked_to(call, run)]
    return in_project(call, run={"artifacts": page(nodes, call)})


def _linked_to(call: Call, run: Run) -> list[Artifact]:
    some: Any = call.store.artifacts.values()
    if call.name == "RunOutputArtifacts":
        return [one for one in some if one.logged_by == run.path]
    return [one for one in some if run.path in one.used_by]
