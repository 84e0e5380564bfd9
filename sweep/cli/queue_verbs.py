"""The group `queue`: the actions on a queue of W&B Launch.

Invariant: as in `run_verbs`. `sweep queue` without an action shows the configured queue.
"""

from __future__ import annotations

from pathlib import Path

import click

from sweep.cli.groups import Verb, VerbGroup
from sweep.cli.options import config_dir_option, json_option, overrides_argument

OVERRIDES = "which queue: queue=launch_kubernetes, queue.KEY=VALUE; default: queue=local"
Words = tuple[str, ...]


@click.group(
    cls=VerbGroup,
    sections={"Actions": ("create", "show", "job", "agent", "automate")},
    default="show",
    noun="action",
    subcommand_metavar="[ACTION] [KEY=VALUE ...]",
    examples=("sweep queue queue=launch_kubernetes", "sweep queue create queue=launch_kubernetes queue.name=gpu"),
)
def queue() -> None:
    """Manage a W&B Launch queue.

    Without an action the queue is shown. `sweep queue ACTION --help` explains an action.
    """


@queue.command(
    cls=Verb,
    examples=(
        "sweep queue create queue=launch_local_process",
        "sweep queue create queue=launch_kubernetes queue.name=gpu queue.max_jobs=8",
    ),
)
@overrides_argument(OVERRIDES)
@config_dir_option
def create(overrides: Words, config_dir: Path | None) -> int:
    """Create the queue in W&B, or change it to what is configured."""
    from sweep.cli import launch_queue

    return launch_queue.create(launch_queue.compose(overrides, config_dir))


@queue.command(cls=Verb, examples=("sweep queue show queue=slurm", "sweep queue show queue=launch_kubernetes --json"))
@overrides_argument(OVERRIDES)
@config_dir_option
@json_option
def show(overrides: Words, config_dir: Path | None, as_json: bool) -> int:
    """Show the configured queue, and what W&B has of it."""
    from sweep.cli import launch_queue

    return launch_queue.show(launch_queue.compose(overrides, config_dir), as_json)


@queue.command(
    cls=Verb,
    examples=(
        "sweep queue job queue=launch_local_process",
        "sweep queue job queue=launch_docker queue.docker_image=registry.example/trainer:1",
    ),
)
@overrides_argument(OVERRIDES)
@config_dir_option
def job(overrides: Words, config_dir: Path | None) -> int:
    """Create the job artifact that is pushed to the queue."""
    from sweep.cli import launch_queue

    return launch_queue.job(launch_queue.compose(overrides, config_dir))


@queue.command(
    cls=Verb,
    examples=(
        "sweep queue agent queue=launch_local_process > launch-config.yaml",
        "sweep queue agent queue=launch_kubernetes --kubernetes | kubectl apply -f -",
    ),
)
@overrides_argument(OVERRIDES)
@config_dir_option
@click.option("--region", metavar="NAME", help="the cloud's region, for SageMaker and Vertex AI")
@click.option("--kubernetes", is_flag=True, help="print objects for kubectl instead")
@click.option("--namespace", default="default", metavar="NAME", help="the cluster's namespace; default: default")
def agent(overrides: Words, config_dir: Path | None, region: str | None, kubernetes: bool, namespace: str) -> int:
    """Print the configuration of the queue's agent."""
    from sweep.cli import launch_queue

    settings = launch_queue.compose(overrides, config_dir)
    return launch_queue.agent_objects(settings, namespace) if kubernetes else launch_queue.agent(settings, region)


@queue.command(
    cls=Verb,
    examples=(
        "sweep queue automate queue=launch_kubernetes --webhook ci",
        "sweep queue automate queue=launch_kubernetes --slack --on version --collection wandb-registry-model/lora",
    ),
)
@overrides_argument(OVERRIDES)
@config_dir_option
@click.option(
    "--on", "event", type=click.Choice(("alias", "version")), default="alias", help="the event; default: alias"
)
@click.option("--alias", default="best", metavar="NAME", help="the alias whose change is the event; default: best")
@click.option("--collection", metavar="NAME", help="only this collection: NAME or wandb-registry-NAME/NAME")
@click.option("--type", "artifact_type", default="model", metavar="NAME", help="the artifacts' type; default: model")
@click.option("--webhook", metavar="NAME", help="call this webhook of the team")
@click.option("--slack", is_flag=True, help="write to the team's Slack channel")
@click.option("--channel", metavar="NAME", help="which Slack channel, if the team has several")
@click.option("--name", metavar="NAME", help="the automation's name")
def automate(  # noqa: PLR0913, PLR0917 - each parameter is an option
    overrides: Words,
    config_dir: Path | None,
    event: str,
    alias: str,
    collection: str | None,
    artifact_type: str,
    webhook: str | None,
    slack: bool,
    channel: str | None,
    name: str | None,
) -> int:
    """Create W&B's automation for each new best adapter."""
    from sweep.cli import launch_queue
    from sweep.errors import ConfigError
    from sweep.queues.launch.automation import Automation

    if webhook is None and not slack:
        raise ConfigError("say what W&B does at the event: --webhook NAME, or --slack")
    settings = launch_queue.compose(overrides, config_dir)
    automation = Automation(event, alias, collection, artifact_type, webhook, channel, name)
    return launch_queue.automate(settings, automation)
