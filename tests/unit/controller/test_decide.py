"""The controller's decisions as a table: facts in, effects out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweep.controller.decide import decide
from sweep.model.effects import Ask, AskFinal, Assign, Cancel, Drain, Effect, Finish, Send, StartWorkers, Stop, Tell
from sweep.model.facts import AttemptFacts, StudyFacts, TrialFacts, Verdict, View, WorkerFacts
from sweep.model.limits import Limits
from sweep.model.states import Ending, Finished, JobState, Mode, Ruling
from trainer.contract import FailureKind, Outcome, OutcomeKind, StopCause

NOW = 1000.0
LIMITS = Limits(trials=4, workers=1)
ASK = Ask(worker="w0001")
W1 = WorkerFacts("w0001", 0, JobState.RUNNING, ready=True, started=NOW - 50, beat=NOW - 1)
GONE = replace(W1, job=JobState.GONE)
PRUNE = Verdict(3, 2.5, "worse than the others")
PAUSE = Verdict(3, 2.5, "not among the best", Ruling.PAUSE)
COMPLETED = Outcome(OutcomeKind.COMPLETED)
NO_SPACE = Outcome(OutcomeKind.FAILED, "No space left", failure=FailureKind.NO_SPACE)


def trial(
    number: int = 0, *attempts: AttemptFacts, verdict: Verdict | None = None, objective: float | None = 2.5
) -> TrialFacts:
    return TrialFacts(number, attempts, verdict, objective)


def attempt(outcome: Outcome | None = None, number: int = 1, worker: str = "w0001", **more: object) -> AttemptFacts:
    return AttemptFacts(number=number, worker=worker, outcome=outcome, **more)  # type: ignore[arg-type]


def stopped(cause: StopCause, reason: str = "why") -> Outcome:
    return Outcome(OutcomeKind.STOPPED, reason, cause=cause)


def view(*trials: TrialFacts, workers: tuple[WorkerFacts, ...] = (W1,), **more: object) -> View:
    study = more.pop("study", None) or StudyFacts(open=tuple(t.number for t in trials))
    return View(study=study, trials=trials, workers=workers, **more)  # type: ignore[arg-type]


SPENT = StudyFacts(complete=4)
SUSPENDED = StudyFacts(complete=3, suspended=(3,))
LEFT = "it was paused, and not promoted before the end"


@pytest.mark.parametrize(
    ("facts", "effects"),
    [
        pytest.param(view(workers=()), [StartWorkers((0,))], id="demand and room: a worker is started"),
        pytest.param(view(workers=(replace(W1, ready=False),)), [], id="a worker that is starting gets nothing yet"),
        pytest.param(view(), [ASK], id="a free slot and budget left: ask"),
        pytest.param(view(trial()), [Assign(0, 1, "w0001")], id="an asked trial is assigned"),
        pytest.param(view(trial(0, attempt())), [], id="a running trial is left alone"),
        pytest.param(
            view(trial(0, attempt(delivered=False))),
            [Assign(0, 1, "w0001")],
            id="a specification that never reached the inbox is assigned again, to the same worker",
        ),
        pytest.param(
            view(trial(0, attempt(), verdict=PRUNE)),
            [Stop(0, 1, StopCause.PRUNED, PRUNE.reason)],
            id="a verdict stops the attempt",
        ),
        pytest.param(
            view(trial(0, attempt(stop=StopCause.PRUNED, stop_since=NOW - 1), verdict=PRUNE)),
            [],
            id="a stop is not repeated",
        ),
        pytest.param(
            view(trial(0, attempt(stop=StopCause.PRUNED, stop_since=NOW - 61), verdict=PRUNE)),
            [Cancel("w0001", "a trial did not stop within 60 s")],
            id="a stop older than its grace cancels the job",
        ),
        pytest.param(
            view(
                trial(0, attempt(stop=StopCause.CANCELLED, stop_since=NOW - 1)),
                workers=(replace(W1, ready=False, job=JobState.PENDING),),
                mode=Mode.CANCEL,
            ),
            [Cancel("w0001", "its trials are to stop, and its job has not started"), Drain("w0001")],
            id="a job that still waits in its queue cannot stop its trials: it is cancelled at once",
        ),
        pytest.param(
            view(trial(0, attempt(), verdict=PAUSE)),
            [Stop(0, 1, StopCause.PAUSED, PAUSE.reason)],
            id="a pause stops the attempt",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.PAUSED)), verdict=PAUSE)),
            [ASK],
            id="a paused trial is not assigned, and its slot is free for what the study gives it",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED), verdict=PAUSE)),
            [ASK],
            id="a pause stands even where the trial was quicker than its stop",
        ),
        pytest.param(
            view(trial(0, attempt(Outcome(OutcomeKind.DIVERGED, "loss is nan")), verdict=PAUSE)),
            [Tell(0, Ending.PRUNED, "diverged: loss is nan"), ASK],
            id="a trial that diverged before it paused has ended",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(GONE, replace(W1, name="w0002"))),
            [Assign(0, 2, "w0002")],
            id="a lost trial that is not paused goes on",
        ),
        pytest.param(
            view(trial(0, attempt(), verdict=PAUSE), workers=(GONE, replace(W1, name="w0002"))),
            [Ask(worker="w0002")],
            id="a trial whose worker was lost while it was to pause is paused",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.PAUSED)))),
            [Assign(0, 2, "w0001")],
            id="a promoted trial becomes its next attempt",
        ),
        pytest.param(
            view(trial(0, *(attempt(stopped(StopCause.PAUSED), number=n) for n in (1, 2, 3, 4)))),
            [Assign(0, 5, "w0001")],
            id="pauses are no lost attempts",
        ),
        pytest.param(
            view(study=SUSPENDED),
            [Ask(new_allowed=False, worker="w0001")],
            id="no budget for a new trial: only a paused one may have the slot",
        ),
        pytest.param(
            view(study=SUSPENDED, workers=()),
            [Ask(new_allowed=False)],
            id="whether a paused trial goes on is asked before a worker is started for it",
        ),
        pytest.param(
            view(study=replace(SUSPENDED, none_to_promote=True)),
            [Tell(3, Ending.PRUNED, LEFT), Drain("w0001")],
            id="nothing more will be promoted: paused trials are told PRUNED",
        ),
        pytest.param(
            view(
                trial(5, attempt()),
                study=replace(SUSPENDED, complete=2, open=(5,), none_to_promote=True),
                workers=(W1, replace(W1, name="w0002", place=1)),
            ),
            [],
            id="while a trial runs that may lift a paused one, an idle worker is kept for it",
        ),
        pytest.param(
            view(study=SUSPENDED, tokens=100),
            [Ask(new_allowed=False, worker="w0001")],
            id="tokens without a limit promote",
        ),
        pytest.param(
            view(study=SUSPENDED, mode=Mode.STOP),
            [Drain("w0001")],
            id="an interrupted sweep keeps its paused trials",
        ),
        pytest.param(
            view(study=SUSPENDED, mode=Mode.STOP, workers=()),
            [Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`")],
            id="and can be resumed for them",
        ),
        pytest.param(
            view(study=SUSPENDED, mode=Mode.CANCEL),
            [Tell(3, Ending.PRUNED, LEFT), Drain("w0001")],
            id="a cancelled sweep tells its paused trials PRUNED",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.PRUNED)), verdict=PRUNE)),
            [Tell(0, Ending.PRUNED, PRUNE.reason), ASK],
            id="PRUNED is told once the attempt has stopped, and the slot is refilled",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED), verdict=PRUNE)),
            [Tell(0, Ending.PRUNED, PRUNE.reason), ASK],
            id="a verdict stands even where the trial was quicker than its stop",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED))), [Tell(0, Ending.COMPLETE, ""), ASK], id="a completed trial is told"
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED, outcome_since=NOW - 1), objective=None)),
            [ASK],
            id="a completed trial whose final report has not arrived is neither told nor trained again",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED, outcome_since=NOW - 121), objective=None)),
            [Assign(0, 2, "w0001")],
            id="a final report that does not arrive is lost, and the next attempt makes it again",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED, outcome_since=NOW - 1), objective=None), workers=(), mode=Mode.CANCEL),
            [Tell(0, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)],
            id="a sweep that is cancelled does not wait for it",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED, outcome_since=NOW - 1), objective=None), workers=(), mode=Mode.STOP),
            [Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`")],
            id="nor does one that is stopped",
        ),
        pytest.param(
            view(
                trial(0, *(attempt(COMPLETED, number=n) for n in (1, 2)), attempt(number=3), objective=None), workers=()
            ),
            [
                Tell(
                    0,
                    Ending.FAIL,
                    "its worker was lost 1 times and its final report was lost 2 times (search.max_attempts=3)",
                ),
                StartWorkers((0,)),
            ],
            id="a lost final report counts as a lost attempt",
        ),
        pytest.param(
            view(trial(0, attempt(COMPLETED), objective=float("nan"))),
            [Tell(0, Ending.FAIL, "its final report has no finite number of the objective"), ASK],
            id="a trial without a finite objective is never told COMPLETE",
        ),
        pytest.param(
            view(trial(0, attempt(Outcome(OutcomeKind.DIVERGED, "loss is nan at step 3")))),
            [Tell(0, Ending.PRUNED, "diverged: loss is nan at step 3"), ASK],
            id="a diverged trial is told PRUNED, so that the sampler learns",
        ),
        pytest.param(
            view(trial(0, attempt(Outcome(OutcomeKind.FAILED, "no file", failure=FailureKind.MISSING_FILE)))),
            [Tell(0, Ending.FAIL, "no file", unbuildable=True), ASK],
            id="a failed trial is told FAIL",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.CANCELLED)))),
            [Tell(0, Ending.FAIL, "why", cancelled=True), ASK],
            id="a cancelled trial is told FAIL, marked",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.PREEMPTED), worker="w0000"))),
            [Assign(0, 2, "w0001")],
            id="a preempted trial goes on as its next attempt, with its number",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(GONE, replace(W1, name="w0002"))),
            [Assign(0, 2, "w0002")],
            id="a lost worker's trial goes on elsewhere",
        ),
        pytest.param(view(trial(0, attempt()), workers=(GONE,)), [StartWorkers((0,))], id="a lost worker is replaced"),
        pytest.param(
            view(trial(0, attempt(), verdict=PRUNE), workers=(GONE,)),
            [Tell(0, Ending.PRUNED, PRUNE.reason), StartWorkers((0,))],
            id="a trial that was to be pruned is not trained again after its worker was lost",
        ),
        pytest.param(
            view(trial(0, *(attempt(number=n) for n in (1, 2, 3))), workers=(GONE,)),
            [Tell(0, Ending.FAIL, "its worker was lost 3 times (search.max_attempts=3)"), StartWorkers((0,))],
            id="after max_attempts it is told failed",
        ),
        pytest.param(
            view(
                trial(
                    0,
                    attempt(stopped(StopCause.PREEMPTED), worker="w0000"),
                    attempt(stopped(StopCause.PREEMPTED), number=2, worker="w0000"),
                    attempt(stopped(StopCause.PREEMPTED), number=3, worker="w0000"),
                )
            ),
            [Assign(0, 4, "w0001")],
            id="preemptions are not counted as lost",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(W1, beat=NOW - 121),)),
            [Cancel("w0001", "no heartbeat for 120 s")],
            id="a silent worker is cancelled, and its trial waits until the job is gone",
        ),
        pytest.param(
            view(workers=(replace(W1, ready=False, started=NOW - 601),)),
            [Cancel("w0001", "not ready 600 s after its start")],
            id="a worker that never gets ready is cancelled",
        ),
        pytest.param(view(study=SPENT), [Drain("w0001")], id="no budget left and a worker idle: drain it"),
        pytest.param(view(study=SPENT, workers=(replace(W1, draining=True),)), [], id="wait for a draining worker"),
        pytest.param(
            view(study=SPENT, workers=(replace(W1, ready=False),)),
            [Drain("w0001"), Cancel("w0001", "nothing is left for it to do")],
            id="a worker still starting when the budget is spent is not waited for",
        ),
        pytest.param(
            view(study=SPENT, workers=(GONE,)),
            [Finish(Finished.DONE, "all 4 trials have ended")],
            id="all told and all workers gone: finish",
        ),
        pytest.param(
            view(study=StudyFacts(complete=1, exhausted=True), workers=()),
            [Finish(Finished.DONE, "the sampler has proposed all it can")],
            id="an exhausted sampler ends the sweep",
        ),
        pytest.param(
            view(trial(0, attempt()), mode=Mode.DETACH), [Drain("w0001")], id="detach drains busy workers too"
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(W1, draining=True),), mode=Mode.DETACH),
            [Finish(Finished.DETACHED, "running trials go on by themselves")],
            id="detached once every worker knows",
        ),
        pytest.param(
            view(trial(0, attempt()), mode=Mode.STOP),
            [Stop(0, 1, StopCause.INTERRUPTED, "the sweep was interrupted"), Drain("w0001")],
            id="stop asks running trials for a checkpoint",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.INTERRUPTED))), workers=(), mode=Mode.STOP),
            [Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`")],
            id="an interrupted trial stays open",
        ),
        pytest.param(
            view(trial(0, attempt()), mode=Mode.CANCEL),
            [Stop(0, 1, StopCause.CANCELLED, "the sweep was stopped"), Drain("w0001")],
            id="cancel stops for good",
        ),
        pytest.param(
            view(trial(0), workers=(), mode=Mode.CANCEL),
            [Tell(0, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)],
            id="cancel tells what has not run",
        ),
        pytest.param(
            view(workers=(GONE,), start_failures=3),
            [Finish(Finished.FAILED, "3 workers in a row ended before they were ready; see `sweep logs`")],
            id="workers that never start end the sweep",
        ),
        pytest.param(
            view(workers=(GONE,), start_failures=3, start_failure="FAILED on n1"),
            [
                Finish(
                    Finished.FAILED,
                    "3 workers in a row ended before they were ready (FAILED on n1); see `sweep logs`",
                )
            ],
            id="and the word says how the last of them did",
        ),
        pytest.param(
            view(trial(0, attempt(stopped(StopCause.PREEMPTED)))),
            [],
            id="a worker whose trial was preempted is about to end, and gets nothing more",
        ),
        pytest.param(
            view(
                trial(0, attempt(stopped(StopCause.PREEMPTED))),
                workers=(W1, replace(W1, name="w0002", place=1)),
            ),
            [Assign(0, 2, "w0002")],
            id="another goes on with it",
        ),
        pytest.param(
            view(trial(0, attempt(), verdict=PRUNE), trial(1, attempt(COMPLETED)), mode=Mode.HANDOVER),
            [Finish(Finished.HANDED_OVER, "another controller goes on")],
            id="a handover leaves all as it is",
        ),
        pytest.param(
            view(trial(0, attempt(NO_SPACE))),
            [Assign(0, 2, "w0001")],
            id="a full disk is no fault of the trial: it is tried again",
        ),
        pytest.param(
            view(trial(0, *(attempt(NO_SPACE, number=n) for n in range(1, 9)))),
            [Assign(0, 9, "w0001")],
            id="as often as it takes",
        ),
        pytest.param(
            view(trial(0, attempt(NO_SPACE)), no_space="no space left in /room"),
            [],
            id="while no space is left, nothing is assigned",
        ),
        pytest.param(
            view(trial(0, attempt(NO_SPACE)), workers=(), no_space="no space left in /room"),
            [],
            id="and no worker is started, and the sweep does not end",
        ),
        pytest.param(
            view(
                trial(0, attempt(stop=StopCause.PRUNED, stop_since=NOW - 999), verdict=PRUNE),
                workers=(
                    replace(W1, beat=NOW - 999),
                    replace(W1, name="w0002", place=1, ready=False, started=NOW - 999),
                ),
                no_space="no space left in /room",
            ),
            [],
            id="nor is a worker cancelled, which can write neither heartbeat nor outcome",
        ),
        pytest.param(
            view(trial(0, attempt(NO_SPACE)), workers=(), mode=Mode.STOP, no_space="no space left in /room"),
            [Finish(Finished.FAILED, "no space left in /room; free some, then `sweep resume`")],
            id="a sweep that is stopped while it waits for space has failed",
        ),
        pytest.param(
            view(trial(0, attempt(NO_SPACE)), workers=(), mode=Mode.DETACH, no_space="no space left in /room"),
            [Finish(Finished.FAILED, "no space left in /room; free some, then `sweep resume`")],
            id="and so has one that is detached",
        ),
        pytest.param(
            view(workers=(), start_failures=3, no_space="no space left in /room"),
            [Finish(Finished.FAILED, "3 workers in a row ended before they were ready; see `sweep logs`")],
            id="workers that failed to start before are no matter of space",
        ),
    ],
)
def test_decision(facts: View, effects: list[Effect]) -> None:
    assert list(decide(facts, LIMITS, NOW)) == effects


@pytest.mark.parametrize(
    ("limits", "facts"),
    [
        pytest.param(Limits(trials=4), view(study=StudyFacts(complete=4)), id="trials"),
        pytest.param(Limits(tokens=100), view(tokens=100), id="tokens"),
        pytest.param(Limits(seconds=60.0), view(seconds=60.0), id="seconds"),
        pytest.param(Limits(target=1.0), view(study=StudyFacts(complete=1, best=0.9)), id="target"),
    ],
)
def test_a_spent_budget_asks_no_more(limits: Limits, facts: View) -> None:
    assert decide(facts, limits, NOW) == (Drain("w0001"),)


def test_a_reached_target_stops_what_runs_and_tells_what_waits() -> None:
    study = StudyFacts(open=(1, 2), complete=1, best=0.5, searching=True, finals=2)
    effects = decide(view(trial(1, attempt()), trial(2), study=study), Limits(trials=9, target=1.0), NOW)
    assert effects == (
        Tell(2, Ending.FAIL, "the sweep ended before it could go on", cancelled=True),
        Stop(1, 1, StopCause.CANCELLED, "another trial reached the target 1"),
    )


def test_finals_are_trained_after_a_target_too() -> None:
    limits = Limits(trials=9, target=1.0)
    study = StudyFacts(complete=2, best=0.5, best_trial=0, finals=1)
    assert decide(view(study=study), limits, NOW) == (AskFinal(),)
    assert decide(view(study=study, workers=()), limits, NOW) == (StartWorkers((0,)),)
    last = StudyFacts(open=(2,), complete=2, best=0.5, best_trial=0)
    assert decide(view(trial(2, attempt()), study=last), limits, NOW) == (), "it is not stopped"
    done = StudyFacts(complete=3, best=0.5, best_trial=0)
    assert decide(view(study=done, workers=()), limits, NOW) == (Finish(Finished.DONE, "the target 1 was reached"),)


def test_a_stop_ends_a_sweep_that_has_finals_alone_before_it() -> None:
    facts = view(study=StudyFacts(complete=4, best=0.5, finals=2), workers=(), mode=Mode.STOP)
    assert decide(facts, LIMITS, NOW) == (
        Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`"),
    )


def test_workers_that_choose_their_slots_share_their_hours() -> None:
    """Sixteen trials of an hour each on one GPU at the same time are one GPU-hour."""
    limits, hours = Limits(trials=99, gpu_hours=10.0), 16 * 3600.0
    packed = view(study=StudyFacts(complete=16), workers=(replace(W1, slots=16),), trained=hours)
    assert any(isinstance(effect, Ask) for effect in decide(packed, limits, NOW))
    alone = view(study=StudyFacts(complete=16), trained=hours)
    assert not any(isinstance(effect, Ask) for effect in decide(alone, limits, NOW))


def test_failures_beyond_the_share_interrupt_the_rest_and_end_the_sweep() -> None:
    study = StudyFacts(open=(5,), complete=1, failed=3)
    running = decide(view(trial(5, attempt()), study=study), Limits(trials=9), NOW)
    assert [type(effect) for effect in running] == [Stop]
    over = decide(
        view(trial(5, attempt(stopped(StopCause.INTERRUPTED))), workers=(), study=study), Limits(trials=9), NOW
    )
    assert isinstance(over[-1], Finish)
    assert over[-1].how is Finished.FAILED
    assert "3 of 4 trials failed" in over[-1].reason


def test_cancelled_trials_do_not_count_as_failures() -> None:
    assert decide(view(study=StudyFacts(complete=1, cancelled=8)), Limits(trials=20), NOW) == (ASK,)


def test_every_free_slot_is_filled_at_once_waiting_trials_first() -> None:
    workers = tuple(replace(W1, name=f"w000{n}", place=n) for n in range(3))
    effects = decide(view(trial(7), workers=workers), Limits(trials=9, workers=3), NOW)
    assert effects == (Assign(7, 1, "w0000"), Ask(worker="w0001"), Ask(worker="w0002"))


def test_workers_are_started_only_for_work_that_nobody_can_take() -> None:
    assert decide(view(workers=()), Limits(trials=2, workers=8), NOW) == (StartWorkers((0, 1)),)


@pytest.mark.parametrize(("assigned", "effects"), [(0, [ASK]), (1, [StartWorkers((1,))])])
def test_a_worker_takes_no_more_than_its_number_of_trials(assigned: int, effects: list[Effect]) -> None:
    limits = Limits(trials=1, workers=2, trials_per_worker=1)
    assert list(decide(view(workers=(replace(W1, assigned=assigned),)), limits, NOW)) == effects


def test_a_draining_worker_keeps_its_place_and_gets_nothing() -> None:
    facts = view(trial(0, attempt()), workers=(replace(W1, draining=True),), study=StudyFacts(open=(0,)))
    assert decide(facts, Limits(trials=5, workers=2), NOW) == (StartWorkers((1,)),)


def test_a_worker_with_slots_is_filled_and_refilled() -> None:
    """Waiting trials first, then proposals, up to its slots; a worker that has chosen its own number is held to it."""
    running = TrialFacts(0, (AttemptFacts(1, "w0001"),))
    waiting = TrialFacts(1)
    limits = Limits(trials=9, workers=1, slots=4)

    def effects(slots: int | None) -> list[Effect]:
        worker = WorkerFacts("w0001", 0, JobState.RUNNING, ready=True, assigned=1, slots=slots)
        return list(decide(View(StudyFacts(open=(0, 1)), (running, waiting), (worker,)), limits, 0.0))

    assert effects(None) == [Assign(1, 1, "w0001"), ASK, ASK]
    assert effects(3) == [Assign(1, 1, "w0001"), ASK]
    assert effects(1) == []
    ended = trial(0, attempt(COMPLETED))
    worker = WorkerFacts("w0001", 0, JobState.RUNNING, ready=True, assigned=2, slots=1)
    refilled = decide(View(StudyFacts(open=(0, 1)), (ended, waiting), (worker,)), limits, 0.0)
    assert Assign(1, 1, "w0001") in refilled


# --- workers that are planned before they are sent to their queue ----------------------------------------------------

PLANNED = WorkerFacts("w0001", 0, JobState.PLANNED)
ONE_EACH = Limits(trials=4, workers=1, trials_per_worker=1)
NOTHING_LEFT = "nothing is left for it to do"


@pytest.mark.parametrize(
    ("facts", "limits", "effects"),
    [
        pytest.param(
            view(trial(), workers=(PLANNED,)),
            ONE_EACH,
            [Assign(0, 1, "w0001")],
            id="it is assigned to before it is ready",
        ),
        pytest.param(view(workers=(PLANNED,)), ONE_EACH, [ASK], id="or asked for"),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(PLANNED, assigned=1),)),
            ONE_EACH,
            [Send("w0001")],
            id="it is sent when it holds what it may take",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(PLANNED, assigned=1),)),
            Limits(trials=4, workers=1, slots=2),
            [ASK],
            id="it waits for more while it has a slot and budget is left",
        ),
        pytest.param(
            view(trial(0, attempt()), trial(1), workers=(replace(PLANNED, assigned=1),)),
            Limits(trials=2, workers=1, slots=4),
            [Assign(1, 1, "w0001")],
            id="or a trial waits",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(PLANNED, assigned=1),), study=StudyFacts(open=(0,), complete=3)),
            Limits(trials=4, workers=1, slots=4),
            [Send("w0001")],
            id="it is sent half full when nothing is left",
        ),
        pytest.param(
            view(trial(0, attempt(delivered=False)), workers=(PLANNED,)),
            ONE_EACH,
            [Assign(0, 1, "w0001"), Send("w0001")],
            id="what never reached its inbox is given to it again, before it is sent",
        ),
        pytest.param(
            view(study=SPENT, workers=(PLANNED,)),
            ONE_EACH,
            [Drain("w0001"), Cancel("w0001", NOTHING_LEFT)],
            id="it is cancelled when nothing is left for it",
        ),
        *(
            pytest.param(
                view(trial(0, attempt()), workers=(replace(PLANNED, assigned=1),), mode=mode),
                ONE_EACH,
                [Drain("w0001"), Cancel("w0001", NOTHING_LEFT)],
                id=f"what was never sent is not sent any more, and needs no stop: {mode}",
            )
            for mode in (Mode.STOP, Mode.CANCEL, Mode.DETACH)
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(W1, ready=False, job=JobState.PENDING),), mode=Mode.DETACH),
            ONE_EACH,
            [Drain("w0001")],
            id="one that was sent goes on without us: it ends after what it has",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(PLANNED, job=JobState.GONE),), mode=Mode.DETACH),
            ONE_EACH,
            [Finish(Finished.DETACHED, "running trials go on by themselves")],
            id="detached once the planned ones are gone",
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(PLANNED, job=JobState.GONE),), mode=Mode.CANCEL),
            ONE_EACH,
            [Tell(0, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)],
            id="a cancelled sweep tells what was never sent",
        ),
    ],
)
def test_planned_workers(facts: View, limits: Limits, effects: list[Effect]) -> None:
    assert list(decide(facts, limits, NOW)) == effects


def test_a_job_that_was_lost_before_its_trial_began_does_not_count() -> None:
    lost = [attempt(number=n, begun=False) for n in range(1, 9)]
    assert decide(view(trial(0, *lost), workers=(GONE,)), LIMITS, NOW) == (StartWorkers((0,)),)
    begun = [*lost, *(attempt(number=n) for n in (9, 10, 11))]
    told = decide(view(trial(0, *begun), workers=(GONE,)), LIMITS, NOW)[0]
    assert told == Tell(0, Ending.FAIL, "its worker was lost 3 times (search.max_attempts=3)")


def test_each_place_is_planned_for_itself() -> None:
    """Two planned workers and three trials' budget: each is sent when it is full, and nobody waits for the other."""
    full = replace(PLANNED, assigned=1)
    empty = replace(PLANNED, name="w0002", place=1)
    facts = view(trial(0, attempt()), workers=(full, empty))
    assert decide(facts, replace(ONE_EACH, workers=2), NOW) == (Ask(worker="w0002"), Send("w0001"))


def test_a_trial_laid_aside_in_this_very_observation_is_told_once() -> None:
    resting = trial(3, attempt(stopped(StopCause.PAUSED)), verdict=PAUSE)
    study = StudyFacts(complete=2, suspended=(3, 5), none_to_promote=True)
    effects = decide(view(resting, study=study), Limits(trials=4), 0.0)
    assert [effect for effect in effects if isinstance(effect, Tell)] == [
        Tell(3, Ending.PRUNED, LEFT),
        Tell(5, Ending.PRUNED, LEFT),
    ]


def test_a_paused_trial_that_had_trained_to_its_end_is_complete_when_none_is_promoted_any_more() -> None:
    """Trials may be quicker than their pauses and spend the whole budget; the sweep has a winner all the same."""
    study, limits = StudyFacts(suspended=(0, 1), trained=(1,), tokens=99), Limits(tokens=99)
    assert decide(view(study=study, workers=(), tokens=99), limits, NOW) == (
        Tell(0, Ending.PRUNED, LEFT),
        Tell(1, Ending.COMPLETE, "it had trained to its end before its pause reached it"),
    )
    with_a_winner = replace(study, complete=1)
    assert decide(view(study=with_a_winner, workers=(), tokens=99), limits, NOW) == (
        Tell(0, Ending.PRUNED, LEFT),
        Tell(1, Ending.PRUNED, LEFT),
    ), "how a trial ends must not depend on how fast its stop was"


NONE_COMPLETE = "all 4 trials have ended, and none is complete: "


@pytest.mark.parametrize(
    ("study", "why"),
    [
        (StudyFacts(failed=4, failure="KeyError: x"), "4 failed; the last failure: KeyError: x"),
        (
            StudyFacts(failed=1, pruned=3, failure="no base"),
            "1 failed, 3 pruned; the last failure: no base",
        ),
        (StudyFacts(pruned=4), "4 pruned"),
        (StudyFacts(pruned=3, cancelled=1), "3 pruned, 1 cancelled"),
    ],
    ids=["all failed", "one failed", "all pruned", "one was cancelled"],
)
def test_a_sweep_without_a_complete_trial_ends_with_an_error_that_says_why(study: StudyFacts, why: str) -> None:
    facts, limits = view(study=study, workers=(GONE,)), replace(LIMITS, max_failure_share=1.0)
    assert decide(facts, limits, NOW) == (
        Finish(Finished.FAILED, f"{NONE_COMPLETE}{why}; see `sweep status` for each reason"),
    )
    free = replace(limits, needs_complete=False)
    assert decide(facts, free, NOW) == (Finish(Finished.DONE, "all 4 trials have ended"),)


def test_a_sweep_that_had_nothing_to_train_is_no_failure() -> None:
    assert decide(view(study=StudyFacts(exhausted=True), workers=()), LIMITS, NOW) == (
        Finish(Finished.DONE, "the sampler has proposed all it can"),
    )


ALONE = Limits(trials=4, workers=3, slots=2, first_alone=True)
W2 = replace(W1, name="w0002", place=1)


@pytest.mark.parametrize(
    ("facts", "effects"),
    [
        pytest.param(view(workers=()), [StartWorkers((0,))], id="one worker is started"),
        pytest.param(view(), [ASK], id="and asked for one trial, though it has two slots"),
        pytest.param(view(trial()), [Assign(0, 1, "w0001")], id="that trial is assigned"),
        pytest.param(view(trial(0, attempt())), [], id="the others wait while it is built"),
        pytest.param(
            view(trial(0, attempt()), trial(1), workers=(W1, W2)), [], id="also those that were asked already"
        ),
        pytest.param(
            view(trial(0, attempt()), workers=(replace(W1, job=JobState.PLANNED),)),
            [Send("w0001")],
            id="a job that carries its first trials is submitted with one",
        ),
        pytest.param(
            view(trial(0, attempt()), tokens=10),
            [ASK, StartWorkers((1,))],
            id="it has trained: the others start",
        ),
        pytest.param(
            view(study=StudyFacts(pruned=1), workers=()), [StartWorkers((0, 1))], id="one has ended, and was built"
        ),
        pytest.param(
            view(trial(0, attempt(Outcome(OutcomeKind.FAILED, "no base", failure=FailureKind.MISSING_FILE)))),
            [Tell(0, Ending.FAIL, "no base", unbuildable=True)],
            id="it cannot be built: that is told, and no other is asked for",
        ),
        pytest.param(
            view(study=StudyFacts(failed=1, unbuildable=1, failure="no base"), workers=(GONE,)),
            [
                Finish(
                    Finished.FAILED,
                    "the first trial cannot be built: no base; correct the cause, and start the sweep anew",
                )
            ],
            id="and the sweep ends",
        ),
        pytest.param(
            view(study=StudyFacts(failed=1, failure="out of memory"), workers=(W1,)),
            [ASK],
            id="a failure of another kind says nothing of the configuration: the next trial goes first",
        ),
    ],
)
def test_what_this_machine_could_not_check_is_built_by_one_trial_first(facts: View, effects: list[Effect]) -> None:
    assert list(decide(facts, ALONE, NOW)) == effects
