"""What must hold of every decision, whatever the facts."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sweep.controller.decide import decide
from sweep.model.effects import Ask, Assign, Finish, Send, StartWorkers, Stop, Tell
from sweep.model.facts import AttemptFacts, StudyFacts, TrialFacts, Verdict, View, WorkerFacts
from sweep.model.limits import Limits
from sweep.model.states import Ending, Finished, JobState, Mode, Ruling
from trainer.contract import Outcome, OutcomeKind, StopCause

NAMES = ("w0001", "w0002", "w0003")
TIMES = st.floats(0, 1000)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome | None:
    kind = draw(st.none() | st.sampled_from(OutcomeKind))
    if kind is None:
        return None
    cause = draw(st.sampled_from(StopCause)) if kind is OutcomeKind.STOPPED else None
    return Outcome(kind, "why", cause=cause)


@st.composite
def trials(draw: st.DrawFn, number: int) -> TrialFacts:
    count = draw(st.integers(0, 4))
    attempts = []
    for n in range(1, count + 1):
        stop = draw(st.none() | st.sampled_from(StopCause))
        # every attempt but the last is over: that is how the controller made the next one
        outcome = draw(outcomes()) if n == count else Outcome(OutcomeKind.STOPPED, cause=StopCause.PREEMPTED)
        attempts.append(
            AttemptFacts(
                number=n,
                worker=draw(st.sampled_from((*NAMES, "w0000"))),
                delivered=draw(st.booleans()),
                stop=stop,
                stop_since=draw(TIMES) if stop else None,
                outcome=outcome,
                outcome_since=draw(st.none() | TIMES) if outcome else None,
            )
        )
    verdict = draw(st.none() | st.builds(Verdict, st.just(2), st.just(1.0), st.just("bad"), st.sampled_from(Ruling)))
    objective = draw(st.none() | st.floats(0, 5) | st.just(math.nan)) if attempts else None
    return TrialFacts(number, tuple(attempts), verdict if attempts else None, objective)


@st.composite
def views(draw: st.DrawFn) -> View:
    numbers = draw(st.lists(st.integers(0, 9), unique=True, max_size=5))
    workers = [
        WorkerFacts(
            name=name,
            place=place,
            job=draw(st.sampled_from(JobState)),
            ready=draw(st.booleans()),
            started=draw(TIMES),
            beat=draw(TIMES),
            assigned=draw(st.integers(0, 5)),
            draining=draw(st.booleans()),
            slots=draw(st.none() | st.integers(1, 4)),
        )
        for place, name in enumerate(NAMES)
    ]
    suspended = draw(st.integers(0, 2))
    study = StudyFacts(
        open=tuple(sorted(numbers)),
        complete=draw(st.integers(0, 5)),
        failed=draw(st.integers(0, 5)),
        best=draw(st.none() | st.floats(0, 5)),
        exhausted=draw(st.booleans()),
        suspended=tuple(range(10, 10 + suspended)),
        none_to_promote=draw(st.booleans()),
        finals=draw(st.integers(0, 3)),
        searching=bool(suspended) or (bool(numbers) and draw(st.booleans())),
    )
    return View(
        study=study,
        trials=tuple(draw(trials(number)) for number in sorted(numbers)),
        workers=tuple(workers),
        mode=draw(st.sampled_from(Mode)),
        tokens=draw(st.integers(0, 100)),
        seconds=draw(TIMES),
        start_failures=draw(st.integers(0, 4)),
    )


LIMITS = st.builds(
    Limits,
    trials=st.none() | st.integers(1, 20),
    tokens=st.none() | st.integers(1, 100),
    target=st.none() | st.floats(0, 5),
    workers=st.integers(1, 4),
    slots=st.integers(1, 3),
    trials_per_worker=st.none() | st.integers(1, 4),
)


@given(views(), LIMITS, TIMES)
def test_without_a_worker_something_is_begun_or_told_or_the_sweep_ends(view: View, limits: Limits, now: float) -> None:
    """For then nothing happens by itself, and a controller that does nothing either waits for ever."""
    gone = tuple(replace(worker, job=JobState.GONE) for worker in view.workers)
    assert decide(replace(view, workers=gone), limits, now + limits.silence + 1000)  # no report is awaited any more


@given(views(), LIMITS, TIMES)
def test_decisions_keep_the_controller_s_promises(view: View, limits: Limits, now: float) -> None:
    effects = decide(view, limits, now)
    assert effects == decide(view, limits, now)
    live = {worker.name: worker for worker in view.workers if worker.job is not JobState.GONE}
    running = {
        trial.number: [a for a in trial.attempts if a.outcome is None and a.worker in live] for trial in view.trials
    }
    by_number = {trial.number: trial for trial in view.trials}

    told = [effect.trial for effect in effects if isinstance(effect, Tell)]
    assert len(told) == len(set(told)), "no trial is told twice"
    assert not any(running.get(number) for number in told), "nothing is told while an attempt may be running"

    complete = [e.trial for e in effects if isinstance(e, Tell) and e.ending is Ending.COMPLETE]
    values = [by_number[number].objective for number in complete]
    assert all(value is not None and math.isfinite(value) for value in values), "no value is told that is none"

    assigned = [effect for effect in effects if isinstance(effect, Assign)]
    assert len({effect.trial for effect in assigned}) == len(assigned)
    assert not {effect.trial for effect in assigned} & set(told)
    for assign in assigned:
        assert assign.worker in live
        again = [a for a in running[assign.trial] if a.number == assign.attempt and not a.delivered]
        assert again or not running[assign.trial], "no trial is trained twice at the same time"
        assert again or assign.attempt == len(by_number[assign.trial].attempts) + 1

    for effect in effects:
        if isinstance(effect, Stop):
            assert any(a.number == effect.attempt and a.stop is None for a in running[effect.trial])
        if isinstance(effect, StartWorkers):
            taken = {worker.place for worker in live.values()}
            assert not taken & set(effect.places)
            assert max(effect.places) < limits.workers

    paused = {number for number, trial in by_number.items() if trial.paused}
    resumed = {effect.trial for effect in assigned if not running[effect.trial]}
    assert not resumed & paused, "a paused trial waits until the study lifts its verdict"
    kept = {*view.study.suspended, *(number for number in paused if not running[number])} - set(told)
    if any(isinstance(effect, Finish) and effect.how is Finished.DONE for effect in effects):
        assert not kept, "nothing is left open when a sweep is done"
    for effect in effects:
        if isinstance(effect, Tell) and effect.trial in view.study.suspended:
            assert effect.ending is Ending.PRUNED

    asks = sum(isinstance(effect, Ask) and effect.new_allowed for effect in effects)
    if limits.trials is not None:
        assert view.study.asked + asks <= max(limits.trials, view.study.asked)
    if view.mode is not Mode.RUN:
        assert asks == 0
        assert not any(isinstance(effect, StartWorkers) for effect in effects)

    for name, worker in live.items():
        new = [e for e in assigned if e.worker == name and not running[e.trial]]
        load = sum(1 for attempts in running.values() for a in attempts if a.worker == name)
        assert not new or load + len(new) <= (limits.slots if worker.slots is None else worker.slots)
        takes = worker.ready or worker.job is JobState.PLANNED
        assert not new or (takes and not worker.draining)

    for effect in effects:
        if isinstance(effect, Send):
            assert live[effect.worker].job is JobState.PLANNED
            assert view.mode is Mode.RUN
            assert any(a.worker == effect.worker for attempts in running.values() for a in attempts)

    finishes = [index for index, effect in enumerate(effects) if isinstance(effect, Finish)]
    assert finishes in ([], [len(effects) - 1])
