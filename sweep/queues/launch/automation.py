"""W&B's own automations for adapters: when one appears, W&B calls a webhook or notifies a Slack channel.

Invariants: the address and the secrets of a webhook stay in W&B's team settings, and only its name is used here. An
automation is identified by its name, so that creating it again changes the existing one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.queues.launch.connection import Connection, asking

REGISTRY = "wandb-registry-"
# Placeholders that W&B fills in when it calls a webhook.
PAYLOAD = {
    "event": "${event_type}",
    "artifact": "${artifact_version_string}",
    "collection": "${artifact_collection_name}",
    "project": "${project_name}",
    "entity": "${entity_name}",
}


@dataclass(frozen=True)
class Automation:
    """What W&B does, and when.

    Args:
        event: alias (an artifact gets it) or version (a new one is made, or linked to a registry).
        alias: which alias.
        collection: `[ENTITY/PROJECT/]NAME`, or `wandb-registry-REGISTRY/NAME`; None: any artifact of the project.
        kind: type of the artifacts.
        webhook: name of a webhook of the team that is called; None: a Slack channel is notified.
        channel: Slack channel of the team's integration; None: the only one.
        name: name of the automation; None: it is made from the rest.
    """

    event: str = "alias"
    alias: str = "best"
    collection: str | None = None
    kind: str = "model"
    webhook: str | None = None
    channel: str | None = None
    name: str | None = None

    @property
    def full_name(self) -> str:
        """The name under which W&B keeps it."""
        if self.name:
            return self.name
        scope = (self.collection or "project").rpartition("/")[2]
        event = f"alias {self.alias}" if self.event == "alias" else "new version"
        return f"sweep: {event} in {scope} to {self.webhook or 'Slack'}"


def automate(connection: Connection, automation: Automation) -> str:
    """Create the automation, or change the one of its name; returns what was done, as text.

    Raises:
        ConfigError: there is no such collection, webhook or Slack integration, or a version has no collection.
    """
    if automation.event == "version" and automation.collection is None:
        raise ConfigError("--on version needs a collection; name it: --collection NAME")
    api = connection.api
    with asking(connection.url):
        event, action = _event(connection, automation), _action(connection, automation)
        existing = next(
            iter(api.automations(entity=connection.home.partition("/")[0], name=automation.full_name)), None
        )
        text = "made by `sweep queue automate`"
        if existing is None:
            api.create_automation(event >> action, name=automation.full_name, description=text, enabled=True)
        else:
            api.update_automation(existing, event=event, action=action, description=text, enabled=True)
    return f"{'created' if existing is None else 'changed'}: {automation.full_name}"


def _event(connection: Connection, automation: Automation) -> Any:
    from wandb.automations import ArtifactEvent, OnAddArtifactAlias, OnCreateArtifact, OnLinkArtifact

    if automation.event == "alias":
        return OnAddArtifactAlias(scope=_scope(connection, automation), filter=ArtifactEvent.alias.eq(automation.alias))
    if REGISTRY in str(automation.collection):
        return OnLinkArtifact(scope=_scope(connection, automation))
    return OnCreateArtifact(scope=_scope(connection, automation))


def _scope(connection: Connection, automation: Automation) -> Any:
    api = connection.api
    if automation.collection is None:
        entity, _, project = connection.home.partition("/")
        return api.project(project, entity=entity)
    path = automation.collection if "/" in automation.collection else f"{connection.home}/{automation.collection}"
    if not api.artifact_collection_exists(path, automation.kind):
        raise ConfigError(
            f"--collection={automation.collection}: W&B has no collection {path} of type {automation.kind}; "
            "it begins with the first artifact, so run a sweep that uploads adapters first"
        )
    return api.artifact_collection(automation.kind, path)


def _action(connection: Connection, automation: Automation) -> Any:
    from wandb.automations import SendNotification, SendWebhook

    api, entity = connection.api, connection.home.partition("/")[0]
    if automation.webhook is not None:
        hooks = {str(hook.name): hook for hook in api.webhook_integrations(entity=entity)}
        webhook = _named(hooks, automation.webhook, "webhook", entity)
        return SendWebhook.from_integration(webhook, payload=PAYLOAD)
    channels = {str(channel.channel_name): channel for channel in api.slack_integrations(entity=entity)}
    chosen = _named(channels, automation.channel or next(iter(channels), ""), "Slack channel", entity)
    return SendNotification.from_integration(chosen, title="A new adapter", text="${artifact_version_string}")


def _named(integrations: dict[str, Any], name: str, what: str, entity: str) -> Any:
    if name not in integrations:
        raise ConfigError(
            f"{entity} has no {what}{f' {name}' if name else ''} in W&B; {_allowed(integrations)}"
            "a team's admin adds one in the team's settings"
        )
    return integrations[name]


def _allowed(names: Iterable[str]) -> str:
    listed = ", ".join(sorted(names))
    return f"allowed: {listed}; " if listed else ""
