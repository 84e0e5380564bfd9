"""W&B's own automations for adapters: a webhook is called or a Slack channel told when one appears.

Invariant: a webhook's address and its secrets stay in W&B's team settings; here a webhook is only named. An automation
has a name of its own, so that making it again changes the one that there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.queues.launch.queue import Connection, asking

EVENTS = ("alias", "version")
REGISTRY = "wandb-registry-"
# What W&B fills in as it calls a webhook.
PAYLOAD = {
    "event": "${event_type}",
    "artifact": "${artifact_version_string}",
    "collection": "${artifact_collection_name}",
    "project": "${project_name}",
    "entity": "${entity_name}",
}


@dataclass(frozen=True)
class Wish:
    """What should happen when.

    Args:
        event: alias (one was given to an artifact) or version (a new one was made, or linked to a registry).
        alias: which one.
        collection: `[ENTITY/PROJECT/]NAME`, or `wandb-registry-REGISTRY/NAME`; null: any artifact of the project.
        kind: the artifacts' type.
        webhook: the name of a webhook of the team; null: Slack.
        channel: the Slack channel of the team's integration; null: the only one.
        name: the automation's; null: made of the rest.
    """

    event: str = "alias"
    alias: str = "best"
    collection: str | None = None
    kind: str = "model"
    webhook: str | None = None
    channel: str | None = None
    name: str | None = None

    @property
    def called(self) -> str:
        if self.name:
            return self.name
        where = (self.collection or "project").rpartition("/")[2]
        what = f"alias {self.alias}" if self.event == "alias" else "new version"
        return f"sweep: {what} in {where} to {self.webhook or 'Slack'}"


def automate(connection: Connection, wish: Wish) -> str:
    """Make the automation, or change the one of that name; returns what was done, in words.

    Raises:
        ConfigError: no such collection, webhook or Slack integration, or a version without a collection.
    """
    if wish.event == "version" and wish.collection is None:
        raise ConfigError("--on version needs a collection; name it: --collection NAME")
    api = connection.api
    with asking(connection.url):
        event, action = _event(connection, wish), _action(connection, wish)
        found = next(iter(api.automations(entity=connection.home.partition("/")[0], name=wish.called)), None)
        text = "made by `sweep queue automate`"
        if found is None:
            api.create_automation(event >> action, name=wish.called, description=text, enabled=True)
        else:
            api.update_automation(found, event=event, action=action, description=text, enabled=True)
    return f"{'made' if found is None else 'changed'}: {wish.called}"


def _event(connection: Connection, wish: Wish) -> Any:
    from wandb.automations import ArtifactEvent, OnAddArtifactAlias, OnCreateArtifact, OnLinkArtifact

    if wish.event == "alias":
        return OnAddArtifactAlias(scope=_scope(connection, wish), filter=ArtifactEvent.alias.eq(wish.alias))
    if REGISTRY in str(wish.collection):
        return OnLinkArtifact(scope=_scope(connection, wish))
    return OnCreateArtifact(scope=_scope(connection, wish))


def _scope(connection: Connection, wish: Wish) -> Any:
    api = connection.api
    if wish.collection is None:
        entity, _, project = connection.home.partition("/")
        return api.project(project, entity=entity)
    path = wish.collection if "/" in wish.collection else f"{connection.home}/{wish.collection}"
    if not api.artifact_collection_exists(path, wish.kind):
        raise ConfigError(
            f"--collection={wish.collection}: W&B has no collection {path} of type {wish.kind}; it begins with the "
            "first artifact, so run a sweep that writes adapters before"
        )
    return api.artifact_collection(wish.kind, path)


def _action(connection: Connection, wish: Wish) -> Any:
    from wandb.automations import SendNotification, SendWebhook

    api, entity = connection.api, connection.home.partition("/")[0]
    if wish.webhook is not None:
        hooks = {str(one.name): one for one in api.webhook_integrations(entity=entity)}
        hook = _named(hooks, wish.webhook, "webhook", entity)
        return SendWebhook.from_integration(hook, payload=PAYLOAD)
    channels = {str(one.channel_name): one for one in api.slack_integrations(entity=entity)}
    chosen = _named(channels, wish.channel or next(iter(channels), ""), "Slack channel", entity)
    return SendNotification.from_integration(chosen, title="A new adapter", text="${artifact_version_string}")


def _named(found: dict[str, Any], name: str, what: str, entity: str) -> Any:
    if name not in found:
        raise ConfigError(
            f"{entity} has no {what}{f' {name}' if name else ''} in W&B; {_known(found)}"
            "a team's admin adds one in the team's settings"
        )
    return found[name]


def _known(names: Iterable[str]) -> str:
    some = ", ".join(sorted(names))
    return f"allowed: {some}; " if some else ""
