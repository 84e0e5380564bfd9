"""Automations through `wandb.automations`: a webhook on a new version, a notification on an alias."""

from __future__ import annotations

from typing import Any

import pytest

from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


@pytest.fixture
def collection(standin: StandIn, wandb_here: Any) -> Any:
    """One that automations can watch."""
    with wandb_here.init(project="p", id="one") as run:
        run.log_artifact(wandb_here.Artifact("adapters", type="model"), aliases=["best"]).wait()
    return wandb_here.Api().artifact_collection("model", "team/p/adapters")


def test_a_webhook_on_a_new_version(standin: StandIn, wandb_here: Any, collection: Any) -> None:
    from wandb.automations import OnCreateArtifact, SendWebhook

    standin.add_webhook("evaluate")
    api = wandb_here.Api()
    webhook = next(iter(api.webhook_integrations(entity="team")))
    event = OnCreateArtifact(scope=collection)
    action = SendWebhook.from_integration(webhook, payload={"adapter": "${artifact_version}"})
    made = api.create_automation(event >> action, name="evaluate-new", description="of a sweep")
    told = standin.automations[0]
    assert (told.name, told.event_type, told.scope_id) == ("evaluate-new", "CREATE_ARTIFACT", collection.id)
    assert (told.action_type, told.action["integrationID"]) == ("GENERIC_WEBHOOK", webhook.id)
    assert made.enabled


def test_a_notification_on_an_alias(standin: StandIn, wandb_here: Any, collection: Any) -> None:
    from wandb.automations import ArtifactEvent, OnAddArtifactAlias, SendNotification

    standin.add_slack("sweeps")
    api = wandb_here.Api()
    slack = next(iter(api.slack_integrations(entity="team")))
    event = OnAddArtifactAlias(scope=collection, filter=ArtifactEvent.alias.eq("best"))
    action = SendNotification.from_integration(slack, title="a new best adapter", text="look")
    api.create_automation(event >> action, name="tell")
    assert (standin.automations[0].event_type, standin.automations[0].action_type) == (
        "ADD_ARTIFACT_ALIAS",
        "NOTIFICATION",
    )
    assert "best" in standin.automations[0].event_filter


def test_an_automation_is_found_once_changed_and_deleted(standin: StandIn, wandb_here: Any, collection: Any) -> None:
    from wandb.automations import DoNothing, OnLinkArtifact

    api = wandb_here.Api()
    event = OnLinkArtifact(scope=collection)
    api.create_automation(event >> DoNothing(), name="one")
    with pytest.raises(Exception, match="exists"):
        api.create_automation(event >> DoNothing(), name="one")
    found = api.automation(name="one", entity="team")
    api.update_automation(found, enabled=False)
    assert [(told.name, told.enabled) for told in standin.automations] == [("one", False)]
    assert api.delete_automation(found)
    assert standin.automations == []
