"""Automations: created on a project, a collection or an entity, listed, changed, deleted. None of them ever acts."""

from __future__ import annotations

from tests.standin.model import Automation, Integration, Json, Store, fresh, identifier, iso
from tests.standin.operations import Call, Refusal, everything, operation, page
from tests.standin.operations.runs import project_node

CONFIGS = {
    "GENERIC_WEBHOOK": "genericWebhookActionInput",
    "NOTIFICATION": "notificationActionInput",
    "NO_OP": "noOpActionInput",
    "QUEUE_JOB": "queueJobActionInput",
}
TYPES = {
    "GENERIC_WEBHOOK": "GenericWebhookTriggeredAction",
    "NOTIFICATION": "NotificationTriggeredAction",
    "NO_OP": "NoOpTriggeredAction",
    "QUEUE_JOB": "QueueJobTriggeredAction",
}


def integration_node(integration: Integration) -> Json:
    return {"__typename": integration.kind, "id": integration.id, **integration.fields}


def automation_node(store: Store, automation: Automation) -> Json:
    return {
        "__typename": "Trigger",
        "id": automation.id,
        "createdAt": iso(automation.created),
        "updatedAt": None,
        "name": automation.name,
        "description": automation.description,
        "enabled": automation.enabled,
        "scope": _scope(store, automation.scope_id),
        "event": {
            "__typename": "FilterEventTriggeringCondition",
            "eventType": automation.event_type,
            "filter": automation.event_filter,
        },
        "action": _action(store, automation),
    }


def _scope(store: Store, scope_id: str) -> Json:
    for path in store.projects:
        node = project_node(store, *path.split("/"))
        if node["id"] == scope_id:
            return {"__typename": "Project", "id": scope_id, "name": node["name"]}
    for collection in store.collections.values():
        if collection.id == scope_id:
            kind = "ArtifactPortfolio" if collection.portfolio else "ArtifactSequence"
            return {"__typename": kind, "id": scope_id, "name": collection.name}
    for name in (store.entity, store.organization):
        if identifier("Entity", name) == scope_id:
            return {"__typename": "Entity", "id": scope_id, "name": name, "entityType": "team"}
    raise Refusal("no such scope", 404)


def _action(store: Store, automation: Automation) -> Json:
    given = dict(automation.action)
    node: Json = {"__typename": TYPES[automation.action_type]}
    integration = given.pop("integrationID", None)
    if integration is not None:
        if integration not in store.integrations:
            raise Refusal("no such integration", 404)
        node["integration"] = integration_node(store.integrations[integration])
    fields = {"requestPayload": None, "title": None, "message": None, "severity": None, "noOp": None, "template": ""}
    return {**fields, **node, **given}


@operation("CreateAutomation")
def _create(call: Call) -> Json:
    kind = call.need("triggeredActionType")
    if kind not in CONFIGS:
        raise Refusal(f"action {kind} is not served", 400)
    if any(one.name == call.need("name") for one in call.store.automations.values()):
        raise Refusal(f"an automation named {call.need('name')!r} exists already", 409)
    automation = Automation(
        id=fresh("Trigger"),
        name=call.need("name"),
        description=call.get("description"),
        enabled=bool(call.get("enabled")),
        scope_type=call.need("scopeType"),
        scope_id=call.need("scopeID"),
        event_type=call.need("triggeringEventType"),
        event_filter=call.need("eventFilter"),
        action_type=kind,
        action=call.need("triggeredActionConfig").get(CONFIGS[kind]) or {},
    )
    node = automation_node(call.store, automation)
    call.store.automations[automation.id] = automation
    return {"result": {"trigger": node}}


@operation("UpdateAutomation")
def _update(call: Call) -> Json:
    automation = call.store.automations.get(call.need("id"))
    if automation is None:
        raise Refusal("no such automation", 404)
    for variable, attribute in (
        ("name", "name"),
        ("description", "description"),
        ("enabled", "enabled"),
        ("eventFilter", "event_filter"),
        ("triggeringEventType", "event_type"),
    ):
        if (value := call.get(variable)) is not None:
            setattr(automation, attribute, value)
    return {"result": {"trigger": automation_node(call.store, automation)}}


@operation("DeleteAutomation")
def _delete(call: Call) -> Json:
    return {"result": {"success": call.store.automations.pop(call.need("id"), None) is not None}}


@operation("GetEntityAutomations", "GetOrgAutomations")
def _list(call: Call) -> Json:
    nodes = [automation_node(call.store, one) for one in call.store.automations.values()]
    return {"scope": {"triggers": page(nodes, call)}}


@operation("GetAutomationsLegacy", "GetEntityAutomationsLegacy")
def _list_by_project(call: Call) -> Json:
    nodes = []
    for path in call.store.projects:
        node = project_node(call.store, *path.split("/"))
        mine = [one for one in call.store.automations.values() if one.scope_id == node["id"]]
        nodes.append({**node, "triggers": [automation_node(call.store, one) for one in mine]})
    return {"scope": {"projects": page(nodes, call)}}


@operation("IntegrationsByEntity")
def _integrations(call: Call) -> Json:
    mine = [one for one in call.store.integrations.values() if one.entity == call.entity()]
    return {"entity": {"integrations": everything([integration_node(one) for one in mine])}}


@operation("CreateGenericWebhookIntegration")
def _create_webhook(call: Call) -> Json:
    fields = {"name": call.need("name"), "urlEndpoint": call.need("urlEndpoint")}
    integration = Integration(fresh("Integration"), "GenericWebhookIntegration", call.entity(), fields)
    call.store.integrations[integration.id] = integration
    return {"result": {"integration": integration_node(integration)}}
