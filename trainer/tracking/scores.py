"""What an evaluation asks of W&B and tells it: the adapter that no path leads to, and the scores on the trial's run.

Invariants: a score that cannot be told ends no evaluation: it lies in the outcome, from where `sweep sync` tells W&B.
The trial's run keeps its own exit code, 0: only what has completed is judged. An offline run is not gone on with:
`wandb sync` would put its summary, of scores alone, in the place of the trial's.
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
from trainer.tracking.tracker import SETTINGS, await_others, await_trackers, score_summary

_log = logging.getLogger(__name__)


def fetch_adapter(asked: Evaluation, to: Path) -> Path:
    """The adapter's directory; brought to `to` from an artifact or an object store.

    Raises:
        FileNotFoundError: it is not there. What the client of W&B or of the store raises.
    """
    if asked.artifact:
        import wandb

        wandb.Api().artifact(asked.artifact, type="model").download(root=str(to))
        return to
    if "://" in asked.adapter:
        store = open_store(asked.adapter)
        if not [key for key in store.list() if store.fetch(key, to / key)]:
            raise FileNotFoundError(f"there is no adapter in {asked.adapter}")
        return to
    if not Path(asked.adapter).is_dir():
        raise FileNotFoundError(f"there is no adapter in {asked.adapter}")
    return Path(asked.adapter)


def tell_scores(tracking: Tracking, files: AttemptDir, scores: Mapping[str, float]) -> None:
    """Put scores into the summary of the trial's run, which ended before; nothing where W&B is not to be asked."""
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

    wanted = dict(tracking.init)
    settings = {**SETTINGS, "x_disable_stats": True, **wanted.pop("settings", {})}
    return wandb.init(
        **wanted,
        id=tracking.run,
        mode="online",
        dir=str(files.path),
        resume="must",
        reinit="create_new",
        settings=wandb.Settings(**settings),
    )
