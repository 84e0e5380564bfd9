"""What is done about a pushed job, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweep.queues.launch.transitions import EndJob, ItemFacts, RunFacts, StopRun, judge_item, judge_run

RUNNING = RunFacts(run_state="running")
CRASHED = RunFacts(run_state="crashed", run_ended=True, ready=True)
CANCELLED = RunFacts(cancelled=True)


@pytest.mark.parametrize(
    ("facts", "action"),
    [
        (RunFacts(), None),
        (RUNNING, None),
        (replace(RUNNING, ready=True, beating=True), None),
        (CRASHED, EndJob("its run is crashed")),
        # over a shared room the worker says itself when it ends, as long as it beats
        (replace(CRASHED, beating=True), None),
        (replace(CRASHED, beating=True, only_wandb=True), EndJob("its run is crashed")),
        # a deleted run is the end of a job only if W&B is all that is shared, and only if it had begun
        (RunFacts(run_deleted=True, ready=True), None),
        (RunFacts(run_deleted=True, only_wandb=True), None),
        (RunFacts(run_deleted=True, ready=True, only_wandb=True), EndJob("its run was deleted in W&B")),
        # a cancelled job that begins after all is stopped, once
        (CANCELLED, None),
        (replace(CANCELLED, run_state="running"), StopRun()),
        (replace(CANCELLED, run_state="running", cancel_expired=True), StopRun()),
        (replace(CANCELLED, run_state="running", stop_requested=True), None),
        (
            replace(CANCELLED, run_state="running", stop_requested=True, cancel_expired=True),
            EndJob("it was cancelled and has not responded since"),
        ),
        (replace(CANCELLED, cancel_expired=True), EndJob("it was cancelled and has not responded since")),
        (RunFacts(cancel_expired=True), None),
        (replace(CANCELLED, run_state="killed", run_ended=True), EndJob("its run is killed")),
    ],
)
def test_a_job_is_judged_by_its_run_and_its_worker(facts: RunFacts, action: StopRun | EndJob | None) -> None:
    assert judge_run(facts) == action


PUSHED = ItemFacts(confirmed=True, state="pending")
LATE = "an agent took it, and it did not start in 60 s (queue.pending_seconds)"


@pytest.mark.parametrize(
    ("facts", "action"),
    [
        (ItemFacts(confirmed=False), None),
        (
            ItemFacts(confirmed=False, push_expired=True),
            EndJob("its push was never confirmed", may_start=True),
        ),
        (PUSHED, None),
        (replace(PUSHED, state="claimed"), None),
        (replace(PUSHED, push_expired=True), None),
        (replace(PUSHED, state=None), EndJob("its item is gone from the queue", may_start=True)),
        (replace(PUSHED, state="failed"), EndJob("the agent could not start it; see the agent's log")),
        (replace(PUSHED, waited_seconds=1e9), None),
        (replace(PUSHED, pending_seconds=60, waited_seconds=60), None),
        (
            replace(PUSHED, pending_seconds=60, waited_seconds=61),
            EndJob("no agent took it within 60 s (queue.pending_seconds)", may_start=True, withdraw=True),
        ),
        (replace(PUSHED, state="claimed", pending_seconds=60, waited_seconds=61), EndJob(LATE, may_start=True)),
        (replace(PUSHED, state="leased", pending_seconds=60, waited_seconds=61), EndJob(LATE, may_start=True)),
    ],
)
def test_a_job_that_has_not_started_is_judged_by_its_item(facts: ItemFacts, action: EndJob | None) -> None:
    assert judge_item(facts) == action
