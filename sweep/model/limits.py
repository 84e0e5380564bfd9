"""What the configuration allows a sweep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows. None means no limit.

    Args:
        trials: how many trials may be asked for.
        tokens: label tokens over all trials.
        seconds: since the sweep was created.
        target: an objective, minimised (see `model.objectives`), that ends the search when a trial reaches it.
        gpu_hours: hours of training. The trials that share a GPU share its hours.
        min_gain: the expected decrease of the objective for each GPU-hour below which nothing more is started.
        workers: how many workers run at a time.
        slots: how many trials a worker runs at a time, unless it chooses that itself.
        trials_per_worker: after this many trials a worker ends and a new one is started.
        max_attempts: lost or failed attempts after which a trial fails; one that found no space left is not counted.
        max_failure_share: the share of failed trials above which the sweep ends with an error, once
            `min_ended_for_share` trials have ended.
        max_start_failures: workers in a row that end before they are ready, after which the sweep ends with an error.
        stop_grace: seconds that an attempt has to obey a stop before its worker is cancelled.
        silence: seconds without a heartbeat after which a worker is cancelled.
        start_grace: seconds that a running job has until its worker is ready.
        first_alone: this machine could not check that the configuration builds, so the first trial does: all others
            wait until a trial has trained, and if the first one cannot be built, the sweep ends.
        needs_complete: a sweep without a complete trial ends with an error.
    """

    trials: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    target: float | None = None
    gpu_hours: float | None = None
    min_gain: float | None = None
    workers: int = 1
    slots: int = 1
    trials_per_worker: int | None = None
    max_attempts: int = 3
    max_failure_share: float = 0.5
    min_ended_for_share: int = 4
    max_start_failures: int = 3
    stop_grace: float = 60.0
    silence: float = 120.0
    start_grace: float = 600.0
    first_alone: bool = False
    needs_complete: bool = True
