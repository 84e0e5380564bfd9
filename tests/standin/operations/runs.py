"""Runs: begun, changed, listed, stopped, deleted; and their files."""

from __future__ import annotations

import json
import re
import time
from hashlib import md5
from typing import Any
from urllib.parse import quote

from tests.standin.filters import UnknownFilter, matches, ordered, sampled
from tests.standin.model import Json, Run, RunState, Store, identifier, iso
from tests.standin.operations import Call, Refusal, operation, page


def project_node(store: Store, entity: str, project: str) -> Json:
    return {
        "__typename": "Project",
        "id": identifier("Project", "v1", project, entity),
        "internalId": project_number(store, entity, project),
        "name": project,
        "entityName": entity,
        "entity": {"id": identifier("Entity", entity), "name": entity, "organization": {"name": store.organization}},
        "readOnly": False,
        "createdAt": iso(store.projects.get(f"{entity}/{project}", 0)),
        "isBenchmark": False,
        "description": None,
        "access": None,
        "views": None,
        "user": None,
    }


def project_number(store: Store, entity: str, project: str) -> str:
    return (
        str(list(store.projects).index(f"{entity}/{project}") + 1) if f"{entity}/{project}" in store.projects else "0"
    )


def run_node(store: Store, run: Run) -> Json:
    history, lines = run.history, run.lines
    return {
        "__typename": "Run",
        "id": run.storage_id,
        "name": run.id,
        "displayName": run.display_name,
        "description": run.description,
        "notes": run.notes,
        "config": json.dumps(run.wire_config),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": json.dumps(run.events[-1] if run.events else {}),
        "state": str(run.state),
        "stopped": run.stopped,
        "group": run.group,
        "jobType": run.job_type,
        "tags": list(run.tags),
        "commit": run.commit,
        "sweepName": run.sweep,
        "readOnly": False,
        "createdAt": iso(run.created),
        "heartbeatAt": iso(run.heartbeat),
        "user": {"name": store.user, "username": store.user},
        "project": project_node(store, run.entity, run.project),
        "projectId": project_number(store, run.entity, run.project),
        "historyLineCount": len(lines.get("wandb-history.jsonl", {})),
        "eventsLineCount": len(lines.get("wandb-events.jsonl", {})),
        "logLineCount": len(lines.get("output.log", {})),
        "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
        "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
        "historyKeys": history_keys(history),
        "wandbConfig": json.dumps({"t": (run.wire_config.get("_wandb") or {}).get("value", {}).get("t", {})}),
        "fileCount": len(run.files),
    }


def history_keys(rows: list[Json]) -> Json:
    counts: dict[str, int] = {}
    for row in rows:
        for key in row:
            counts[key] = counts.get(key, 0) + 1
    keys = {key: {"typeCounts": [{"type": "number", "count": count}]} for key, count in counts.items()}
    return {"lastStep": rows[-1].get("_step", -1) if rows else -1, "keys": keys, "sets": []}


def find_run(call: Call) -> Run | None:
    name = call.get("name", "run", "runName", "runId")
    return call.store.run(f"{call.entity()}/{call.project()}/{name}")


def in_project(call: Call, **fields: Any) -> Json:
    """`project` with these fields, null where there is no such project."""
    path = f"{call.entity()}/{call.project()}"
    if path not in call.store.projects:
        return {"project": None}
    return {"project": {**project_node(call.store, call.entity(), call.project()), **fields}}


@operation("UpsertBucket")
def _upsert(call: Call) -> Json:
    """A client that begins a run, new or known, says which program does; its later changes do not."""
    found = call.store.run_by_storage_id(call.get("id") or "") or find_run(call)
    run = found or _new(call)
    if found is None or call.get("program") is not None:
        run.begin(json.dumps(call.variables, sort_keys=True), resumed=call.get("id") is not None)
    _change(run, call)
    return {"upsertBucket": {"bucket": run_node(call.store, run), "inserted": found is None}}


def _new(call: Call) -> Run:
    name = call.get("name")
    path = f"{call.entity()}/{call.project()}/{name}"
    if name is None:
        raise Refusal("run not found", 404)
    if path in call.store.deleted:
        raise Refusal(f"run {path} was previously created and deleted; try a new run name", 410)
    call.store.project(call.entity(), call.project())
    call.store.runs[path] = Run(call.entity(), call.project(), name, call.store.limits, display_name=name)
    return call.store.runs[path]


def _change(run: Run, call: Call) -> None:
    if (config := call.json("config")) is not None:
        run.wire_config = config
    if (summary := call.json("summaryMetrics")) is not None:
        run.summary = summary
    for variable, attribute in (
        ("displayName", "display_name"),
        ("display_name", "display_name"),
        ("groupName", "group"),
        ("jobType", "job_type"),
        ("tags", "tags"),
        ("notes", "notes"),
        ("description", "description"),
        ("commit", "commit"),
        ("host", "host"),
        ("program", "program"),
        ("sweep", "sweep"),
    ):
        if (value := call.get(variable)) is not None:
            setattr(run, attribute, value)
    if call.get("state") == "pending":
        run.pending, run.starts = True, 0


@operation("RunResumeStatus")
def _resume(call: Call) -> Json:
    run = find_run(call)
    if f"{call.entity()}/{call.project()}" not in call.store.projects:
        return {"model": None}
    model = project_node(call.store, call.entity(), call.project())
    return {"model": {**model, "bucket": run and run_node(call.store, run)}}


@operation("Run", "RunState", "RunStoppedStatus", "RunHistoryKeys", "QueryRunInfo")
def _run(call: Call) -> Json:
    run = find_run(call)
    return in_project(call, run=run and run_node(call.store, run))


@operation("Runs")
def _runs(call: Call) -> Json:
    inside = [run for run in call.store.runs.values() if (run.entity, run.project) == (call.entity(), call.project())]
    try:
        found = ordered([run for run in inside if matches(run, call.json("filters") or {})], call.get("order") or "")
    except UnknownFilter as error:
        raise Refusal(f"Runs: filter {error}", 400) from error
    specs = [json.loads(spec) for spec in call.get("specs") or []]
    nodes = [{**run_node(call.store, run), "sampledHistory": [sampled(run, spec) for spec in specs]} for run in found]
    return in_project(call, runs=page(nodes, call), runCount=len(nodes))


@operation("StopRun")
def _stop(call: Call) -> Json:
    run = call.store.run_by_storage_id(call.need("id"))
    if run is None:
        raise Refusal("run not found", 404)
    run.stop_requests.append(time.time())
    return {"stopRun": {"success": True}}


@operation("DeleteRun")
def _delete(call: Call) -> Json:
    run = call.store.run_by_storage_id(call.need("id"))
    if run is None:
        raise Refusal("run not found", 404)
    call.store.deleted[run.path] = call.store.runs.pop(run.path)
    return {"deleteRun": {"clientMutationId": None}}


@operation("UpdateRunState")
def _update_state(call: Call) -> Json:
    """The two transitions that the client documents."""
    run = call.store.run_by_storage_id(call.need("id"))
    wanted = call.need("state")
    if run is None:
        raise Refusal("run not found", 404)
    allowed = {
        "pending": {RunState.RUNNING, RunState.FAILED, RunState.CRASHED, RunState.PREEMPTED},
        "failed": {RunState.PENDING, RunState.RUNNING},
    }
    if run.state not in allowed.get(wanted, set()):
        raise Refusal(f"a run that is {run.state} cannot become {wanted}", 400)
    run.pending, run.ended = wanted == "pending", RunState.FAILED if wanted == "failed" else None
    return {"updateRunState": {"success": True}}


@operation("NotifyScriptableRunAlert")
def _alert(call: Call) -> Json:
    run = find_run(call)
    if run is not None:
        run.alerts.append((call.need("title"), call.get("text") or ""))
    return {"notifyScriptableRunAlert": {"success": run is not None}}


@operation("CreateProject", "UpsertModel")
def _create_project(call: Call) -> Json:
    name = call.need("name", "project")
    call.store.project(call.entity(), name)
    node = project_node(call.store, call.entity(), name)
    return {"result": {"project": node, "model": node, "inserted": True}, "upsertModel": {"project": node}}


@operation("GetProject", "IsProjectReadOnly", "Project")
def _project(call: Call) -> Json:
    name = call.get("project", "name")
    known = f"{call.entity()}/{name}" in call.store.projects
    return {"project": project_node(call.store, call.entity(), name) if known else None}


@operation("GetProjects")
def _projects(call: Call) -> Json:
    pairs = [path.split("/") for path in call.store.projects]
    return {"models": page([project_node(call.store, *pair) for pair in pairs if pair[0] == call.entity()], call)}


@operation("CreateRunFiles")
def _create_files(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        raise Refusal("run not found", 404)
    files = [{"name": name, "uploadUrl": _file_url(call, run, name)} for name in call.need("files")]
    return {"createRunFiles": {"runID": run.storage_id, "uploadHeaders": [], "files": files}}


def _file_url(call: Call, run: Run, name: str) -> str:
    return f"{call.url}/run-files/{quote(run.path)}/{quote(name)}"


@operation("MarkRunFilesUploaded")
def _mark(call: Call) -> Json:
    run = find_run(call)
    if run is not None:
        run.uploaded += call.need("files")
    return {"markRunFilesUploaded": {"success": run is not None}}


@operation("RunFiles")
def _files(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        return in_project(call, run=None)
    names = call.get("fileNames") or []
    pattern = re.compile(re.escape(call.get("pattern") or "%").replace("%", ".*"), re.DOTALL)
    wanted = [name for name in sorted(run.files) if (name in names if names else pattern.fullmatch(name))]
    nodes = [_file_node(call, run, name) for name in wanted]
    return in_project(call, run={**run_node(call.store, run), "files": page(nodes, call)})


@operation("deleteFiles")
def _delete_files(call: Call) -> Json:
    wanted = set(call.need("files"))
    for run in call.store.runs.values():
        run.files = {name: body for name, body in run.files.items() if _file_id(run, name) not in wanted}
    return {"deleteFiles": {"success": True}}


def _file_id(run: Run, name: str) -> str:
    return identifier("File", run.path, name)


def _file_node(call: Call, run: Run, name: str) -> Json:
    content = run.files[name]
    return {
        "__typename": "File",
        "id": _file_id(run, name),
        "name": name,
        "url": _file_url(call, run, name),
        "directUrl": _file_url(call, run, name),
        "sizeBytes": len(content),
        "mimetype": None,
        "updatedAt": iso(run.heartbeat),
        "md5": md5(content).hexdigest(),
    }
