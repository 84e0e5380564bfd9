"""What to do about a pushed job of a Launch queue, as pure functions of what is known of it.

Invariants: nothing is asked or written here. A job is judged by its run and by what its worker wrote in the room; the
queue's item is asked only for a job that shows neither, since an item stays claimed after its job has ended.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a job's run and its worker's files say.

    Args:
        run_state: W&B's word for the state of the run that the job has begun; None if W&B shows no such run.
        run_ended: whether that state is final.
        stop_requested: whether the controller has asked W&B to stop that run.
        run_deleted: whether W&B showed the run before, and does no longer.
        ready: whether the worker has sent a heartbeat.
        beating: whether its heartbeat is recent, so that the job outlives its run.
        only_wandb: whether jobs and controller share nothing but W&B.
        cancelled: whether the controller has cancelled the job.
        cancel_expired: whether that was so long ago that the job must have ended.
    """

    run_state: str | None = None
    run_ended: bool = False
    stop_requested: bool = False
    run_deleted: bool = False
    ready: bool = False
    beating: bool = False
    only_wandb: bool = False
    cancelled: bool = False
    cancel_expired: bool = False


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What the queue's item says of a job that has not started.

    Args:
        confirmed: whether W&B has answered the push with the item's id.
        push_expired: whether the push was so long ago that an unconfirmed one is lost.
        state: W&B's word for the item's state; None if the queue has no such item.
        pending_seconds: how long a job may wait; None: for ever.
        waited_seconds: how long the job has waited.
    """

    confirmed: bool
    push_expired: bool = False
    state: str | None = None
    pending_seconds: float | None = None
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StopRun:
    """Ask W&B to stop the job's run."""


@dataclass(frozen=True, slots=True)
class EndJob:
    """Count the job as ended.

    Args:
        reason: how it ended, for a person.
        may_start: its process may still start, and must then find that nobody waits for it.
        withdraw: take its item off the queue before.
    """

    reason: str
    may_start: bool = False
    withdraw: bool = False


def judge_run(facts: RunFacts) -> StopRun | EndJob | None:
    """What to do about a pushed job, from its run and its worker; None: nothing now."""
    if facts.run_state is not None and facts.run_ended and (facts.only_wandb or not facts.beating):
        return EndJob(f"its run is {facts.run_state}")
    if facts.only_wandb and facts.ready and facts.run_deleted:
        return EndJob("its run was deleted in W&B")
    if facts.cancelled and facts.run_state is not None and not facts.stop_requested:
        return StopRun()  # the job had not begun its run when it was cancelled
    if facts.cancelled and facts.cancel_expired:
        return EndJob("it was cancelled and has not responded since")
    return None


def judge_item(facts: ItemFacts) -> EndJob | None:
    """What to do about a job that shows neither a run nor a heartbeat, from its item; None: nothing now."""
    limit = facts.pending_seconds
    if not facts.confirmed:
        return EndJob("its push was never confirmed", may_start=True) if facts.push_expired else None
    if facts.state is None:
        return EndJob("its item is gone from the queue", may_start=True)
    if facts.state == "failed":
        return EndJob("the agent could not start it; see the agent's log")
    if limit is None or facts.waited_seconds <= limit:
        return None
    if facts.state == "pending":
        reason = f"no agent took it within {limit:g} s (queue.pending_seconds)"
        return EndJob(reason, may_start=True, withdraw=True)
    reason = f"an agent took it, and it did not start in {limit:g} s (queue.pending_seconds)"
    return EndJob(reason, may_start=True)
