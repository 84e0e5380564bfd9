"""What this program asks of a W&B run besides logging: its other writers, its inputs, and its cause of a stop.

Invariant: W&B's client is imported at the first use.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trainer.contract import STOP_TAG, StopCause, Tracking

# How long a client waits for the one before it. If that one was killed, W&B takes minutes to notice.
HANDOVER_SECONDS, HANDOVER_LOOK_SECONDS = 15.0, 0.5


def await_others(tracking: Tracking) -> None:
    """Wait until W&B knows of no client that writes to the run, for at most `HANDOVER_SECONDS`.

    A client reads the run's summary when it starts, and later writes all of it. It would overwrite what another client
    writes in its last seconds, for example the end of training.
    """
    import wandb

    end = time.monotonic() + HANDOVER_SECONDS
    with suppress(Exception):  # there is no such run, or W&B is unreachable, which `wandb.init` reports
        api: Any = wandb.Api(timeout=10)
        while api.run(_path_of(tracking)).state in ("running", "preempting") and time.monotonic() < end:
            time.sleep(HANDOVER_LOOK_SECONDS)
            api.flush()


def _path_of(tracking: Tracking) -> str:
    """The run's path for W&B's public API, which has a default for the entity."""
    return "/".join(part for part in (tracking.init.get("entity"), tracking.init.get("project"), tracking.run) if part)


def stop_cause(tracking: Tracking) -> StopCause:
    """Why the controller asked for a stop, by a tag of the run. Without a tag, a person stopped the run in W&B.

    If controller and job share W&B only, the controller knows who it was. The trial is then interrupted, so that its
    checkpoint is kept until the controller decides.
    """
    with suppress(Exception):
        import wandb

        run = wandb.Api(timeout=10).run(_path_of(tracking))
        causes = [tag.removeprefix(STOP_TAG) for tag in run.tags if tag.startswith(STOP_TAG)]
        return StopCause(causes[-1])
    return StopCause.INTERRUPTED if tracking.checkpoint else StopCause.CANCELLED


def declare_inputs(run: Any, inputs: Mapping[str, Any]) -> None:
    """Record by reference the artifacts from which a run's adapter was trained.

    Args:
        inputs: name to `type` and `uri`.
    """
    import wandb

    for name, source in inputs.items():
        artifact = wandb.Artifact(name, type=source["type"], metadata={"uri": source["uri"]})
        artifact.add_reference(source["uri"], name="source", checksum=False)
        run.use_artifact(artifact)
