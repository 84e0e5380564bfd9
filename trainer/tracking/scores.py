"""Fetches the adapter that an evaluation scores, and adds the scores to the trial's run in W&B.

Invariants: a failed upload of scores ends no evaluation. The scores are in the outcome, from which `sweep sync` uploads
them. The trial's run keeps its exit code, 0, since only completed trials are evaluated. An offline run is not resumed:
`wandb sync` would replace the trial's summary by one with scores only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import Evaluation, Tracking
from trainer.room import AttemptDir
from trainer.store.objects import open_store
from trainer.tracking.runs import await_others
from trainer.tracking.summary import score_summary
from trainer.tracking.tracker import SETTINGS, await_trackers

_log = logging.getLogger(__name__)


def fetch_adapter(evaluation: Evaluation, to: Path) -> Path:
    """The adapter's directory; an artifact or an object store is downloaded to `to`.

    Raises:
        FileNotFoundError: there is no adapter. The clients of W&B and of the store raise further errors.
    """
    if evaluation.artifact:
        import wandb

        wandb.Api().artifact(evaluation.artifact, type="model").download(root=str(to))
        return to
    if "://" in evaluation.adapter:
        store = open_store(evaluation.adapter)
        if not [key for key in store.list() if store.fetch(key, to / key)]:
            raise FileNotFoundError(f"there is no adapter in {evaluation.adapter}")
        return to
    if not Path(evaluation.adapter).is_dir():
        raise FileNotFoundError(f"there is no adapter in {evaluation.adapter}")
    return Path(evaluation.adapter)


def upload_scores(tracking: Tracking, files: AttemptDir, scores: Mapping[str, float]) -> None:
    """Add scores to the summary of the trial's run, which has ended before; do nothing if the run is offline."""
    if tracking.mode == "offline":
        return
    try:
        await_trackers(tracking.run)
        await_others(tracking)
        run = _resume(tracking, files)
        run.summary.update(score_summary(scores))
        run.finish(exit_code=0)
    except Exception as error:
        _log.warning(
            "the scores did not reach W&B, run `sweep sync` to upload them: %s: %s", type(error).__name__, error
        )


def _resume(tracking: Tracking, files: AttemptDir) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    arguments = dict(tracking.init)
    settings = {**SETTINGS, "x_disable_stats": True, **arguments.pop("settings", {})}
    return wandb.init(
        **arguments,
        id=tracking.run,
        mode="online",
        dir=str(files.path),
        resume="must",
        reinit="create_new",
        settings=wandb.Settings(**settings),
    )
