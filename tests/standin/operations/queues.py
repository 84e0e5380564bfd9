"""Launch queues and their items: created, pushed, popped by priority, acknowledged, failed, deleted."""

from __future__ import annotations

import copy
import json
import time

from tests.standin.model import Item, ItemState, Json, Queue, Store, fresh
from tests.standin.operations import Call, Refusal, everything, operation
from tests.standin.operations.identity import entity_node
from tests.standin.operations.runs import project_node
from tests.standin.templates import WrongValue, resolved, schemas

PRIORITY = 2  # medium, where nothing is said


def find_queue(call: Call, *names: str) -> Queue | None:
    name = call.get(*(names or ("queueName", "runQueue", "runQueueName")))
    project = call.get("project", "projectName") or "model-registry"
    return call.store.queues.get(f"{call.entity()}/{project}/{name}")


def queue_by_id(store: Store, queue_id: str) -> Queue | None:
    return next((queue for queue in store.queues.values() if queue.id == queue_id), None)


@operation("CreateDefaultResourceConfig")
def _create_config(call: Call) -> Json:
    config_id = fresh("DefaultResourceConfig")
    call.store.configs[config_id] = {
        "resource": call.need("resource"),
        "config": call.json("config"),
        "templateVariables": call.json("templateVariables") or {},
    }
    return {"createDefaultResourceConfig": {"defaultResourceConfigID": config_id, "success": True}}


@operation("CreateRunQueue")
def _create(call: Call) -> Json:
    project = call.project()
    path = f"{call.entity()}/{project}/{call.need('queueName')}"
    if path in call.store.queues:
        raise Refusal(f"queue {path} exists already", 409)
    call.store.project(call.entity(), project)
    queue = Queue(call.entity(), project, call.need("queueName"), access=call.get("access") or "PROJECT")
    config_id = call.get("defaultResourceConfigID")
    if config_id is not None:
        _configure(call.store, queue, config_id)
    queue.prioritized = call.get("prioritizationMode") == "V0"
    call.store.queues[path] = queue
    return {"createRunQueue": {"success": True, "queueID": queue.id}}


def _configure(store: Store, queue: Queue, config_id: str) -> None:
    config = store.configs[config_id]
    queue.config_id, queue.resource, queue.config = config_id, config["resource"], config["config"]
    queue.template_variables = config["templateVariables"]


@operation("UpsertRunQueue")
def _upsert(call: Call) -> Json:
    path = f"{call.entity()}/{call.project()}/{call.need('queueName')}"
    call.store.project(call.entity(), call.project())
    queue = call.store.queues.setdefault(path, Queue(call.entity(), call.project(), call.need("queueName")))
    config_id = fresh("DefaultResourceConfig")
    call.store.configs[config_id] = {
        "resource": call.need("resourceType"),
        "config": call.json("resourceConfig"),
        "templateVariables": call.json("templateVariables") or {},
    }
    _configure(call.store, queue, config_id)
    queue.prioritized = call.get("prioritizationMode") == "V0"
    queue.external_links = call.json("externalLinks")
    return {"upsertRunQueue": {"success": True, "configSchemaValidationErrors": []}}


@operation("DeleteRunQueue")
def _delete(call: Call) -> Json:
    queue = queue_by_id(call.store, call.need("id"))
    if queue is None:
        raise Refusal("queue not found", 404)
    path = f"{queue.entity}/{queue.project}/{queue.name}"
    del call.store.queues[path]
    for item in [item for item in call.store.items.values() if item.queue == path]:
        del call.store.items[item.id]
    return {"deleteRunQueues": {"success": True, "clientMutationId": None}}


@operation("ProjectRunQueues")
def _queues(call: Call) -> Json:
    """A project that nobody has made yet has no queues."""
    project = call.get("projectName", "project")
    here = [queue for queue in call.store.queues.values() if (queue.entity, queue.project) == (call.entity(), project)]
    nodes = [{"id": queue.id, "name": queue.name, "createdBy": 1, "access": queue.access} for queue in here]
    return {"project": {**project_node(call.store, call.entity(), str(project)), "runQueues": nodes}}


@operation("GetRunQueueMetadata", "fetchRunQueuesFromProject", "GetRunQueueItem", "GetRunQueueItems")
def _queue(call: Call) -> Json:
    queue = find_queue(call)
    if queue is None:
        return {"project": {"runQueue": None}}
    path = f"{queue.entity}/{queue.project}/{queue.name}"
    here = [item_node(item) for item in call.store.items.values() if item.queue == path]
    node = {
        "id": queue.id,
        "name": queue.name,
        "access": queue.access,
        "defaultResourceConfigID": queue.config_id,
        "prioritizationMode": "V0" if queue.prioritized else "DISABLED",
        "externalLinks": queue.external_links,
        "runQueueItem": next((item for item in here if item["id"] == call.get("itemId")), None),
        "runQueueItems": everything(here[:100]),
    }
    return {"project": {"runQueue": node}}


def item_node(item: Item) -> Json:
    return {"id": item.id, "state": str(item.state), "associatedRunId": item.run_id, "priority": item.priority}


@operation("GetDefaultResourceConfig")
def _config(call: Call) -> Json:
    config = call.store.configs.get(call.need("id"))
    if config is None:
        return {"entity": {**entity_node(call.store, call.entity()), "defaultResourceConfig": None}}
    named = schemas(Queue("", "", "", template_variables=config["templateVariables"]))
    variables = [{"name": name, "schema": json.dumps(schema)} for name, schema in named.items()]
    found = {"config": config["config"], "resource": config["resource"], "templateVariables": variables}
    return {"entity": {**entity_node(call.store, call.entity()), "defaultResourceConfig": found}}


@operation("pushToRunQueueByName")
def _push_by_name(call: Call) -> Json:
    queue = find_queue(call)
    if queue is None:
        return {"pushToRunQueueByName": None}
    item = push(call, queue)
    return {"pushToRunQueueByName": {"runQueueItemId": item.id, "runSpec": json.dumps(item.spec)}}


@operation("pushToRunQueue")
def _push(call: Call) -> Json:
    queue = queue_by_id(call.store, call.need("queueID"))
    return {"pushToRunQueue": {"runQueueItemId": push(call, queue).id} if queue else None}


def push(call: Call, queue: Queue) -> Item:
    """The queue's resource and its filled-in arguments are added to what the pusher says, who wins."""
    spec: Json = call.json("runSpec")
    if call.get("priority") is not None and not queue.prioritized:
        raise Refusal(f"queue {queue.name} has no priorities", 400)
    try:
        arguments = resolved(queue, call.json("templateVariableValues") or {})
    except WrongValue as error:
        raise Refusal(str(error), 400) from error
    spec["resource"] = spec.get("resource") or queue.resource
    spec["resource_args"] = {**arguments, **(spec.get("resource_args") or {})}
    number = len(call.store.items) + len(call.store.lost)
    path = f"{queue.entity}/{queue.project}/{queue.name}"
    priority = call.get("priority")
    item = Item(fresh("RunQueueItem"), path, spec, PRIORITY if priority is None else priority, time.time(), number)
    call.store.items[item.id] = item
    return item


@operation("popFromRunQueue")
def _pop(call: Call) -> Json:
    queue = find_queue(call)
    agent = call.store.agents.get(call.get("launchAgentId") or "")
    if agent is not None:
        agent.last_poll = agent.heartbeat = time.time()
    if queue is None:
        return {"popFromRunQueue": None}
    path = f"{queue.entity}/{queue.project}/{queue.name}"
    lease = call.store.limits.lease
    waiting = [item for item in call.store.items.values() if item.queue == path and item.waits(lease)]
    if not waiting:
        return {"popFromRunQueue": None}
    item = min(waiting, key=lambda one: (one.priority if queue.prioritized else 0, one.pushed, one.number))
    item.state, item.leased, item.leased_by = ItemState.LEASED, time.time(), agent.id if agent else None
    return {"popFromRunQueue": {"runQueueItemId": item.id, "runSpec": copy.deepcopy(item.spec)}}


def _item(call: Call) -> Item:
    item = call.store.items.get(call.need("runQueueItemId", "itemId"))
    if item is None:
        raise Refusal("run queue item not found", 404)
    return item


@operation("ackRunQueueItem")
def _acknowledge(call: Call) -> Json:
    """Once only: a second acknowledgement is told that it failed."""
    item = _item(call)
    mine = item.state in {ItemState.PENDING, ItemState.LEASED}
    if mine:
        item.state, item.run_id, item.acked = ItemState.CLAIMED, call.need("runId"), time.time()
    return {"ackRunQueueItem": {"success": mine}}


@operation("failRunQueueItem")
def _fail(call: Call) -> Json:
    item = _item(call)
    item.state = ItemState.FAILED
    item.error = {name: call.get(name) for name in ("message", "stage", "filePaths")}
    return {"failRunQueueItem": {"success": True}}


@operation("updateRunQueueItemWarning")
def _warn(call: Call) -> Json:
    _item(call).warnings.append(call.need("message"))
    return {"updateRunQueueItemWarning": {"success": True}}


@operation("DeleteFromRunQueue")
def _remove(call: Call) -> Json:
    item = _item(call)
    del call.store.items[item.id]
    return {"deleteFromRunQueue": {"success": True, "clientMutationId": None}}
