"""What the controller does next: a pure function of facts, limits and the time.

Invariants: total and deterministic; imports nothing that acts. Derived anew from the facts each time, so that a
restarted controller decides as the old one would have. A trial is told only when no attempt of it can be
running; PRUNED is told only once the attempt has stopped; a trial is assigned only when its last attempt is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sweep.model import (
    Ask,
    Assign,
    AttemptFacts,
    Cancel,
    Drain,
    Effect,
    Ending,
    Finish,
    Finished,
    JobState,
    Limits,
    Mode,
    Send,
    StartWorkers,
    Stop,
    Tell,
    TrialFacts,
    View,
    WorkerFacts,
)
from trainer.contract import OutcomeKind, StopCause


def decide(view: View, limits: Limits, now: float) -> tuple[Effect, ...]:
    """The effects that these facts call for, in the order in which to carry them out."""
    return tuple(_Decision(view, limits, now).effects())


@dataclass
class _Decision:
    view: View
    limits: Limits
    now: float

    def effects(self) -> Iterator[Effect]:
        if self.view.mode is Mode.HANDOVER:
            yield Finish(Finished.HANDED_OVER, "another controller goes on")
            return
        ended = [tell for trial in self.view.trials if (tell := self._tell(trial))]
        yield from ended
        yield from self._stops()
        yield from self._cancels()
        yield from self._assignments()
        yield from self._starts()
        yield from self._sendings()
        yield from self._drains()
        if not ended and (finish := self._finish()):
            yield finish

    # --- trials -----------------------------------------------------------------------------------------------

    def _tell(self, trial: TrialFacts) -> Tell | None:
        last = trial.attempts[-1] if trial.attempts else None
        if last is None:
            return self._tell_cancelled(trial)
        if self._alive(last):
            return None
        pruned = trial.verdict.reason if trial.verdict else None
        if last.outcome is None:
            return self._tell_lost(trial, pruned)
        outcome = last.outcome
        match outcome.kind:
            case OutcomeKind.COMPLETED if pruned is None:
                return Tell(trial.number, Ending.COMPLETE, outcome.reason)
            case OutcomeKind.DIVERGED:
                return Tell(trial.number, Ending.PRUNED, f"diverged: {outcome.reason}")
            case OutcomeKind.FAILED if outcome.resumable:
                return self._tell_lost(trial, pruned)
            case OutcomeKind.FAILED:
                return Tell(trial.number, Ending.FAIL, outcome.reason)
            case OutcomeKind.STOPPED if outcome.cause is StopCause.CANCELLED:
                return Tell(trial.number, Ending.FAIL, outcome.reason, cancelled=True)
            case OutcomeKind.STOPPED if pruned is None and outcome.resumable:
                return self._tell_cancelled(trial)
        return Tell(trial.number, Ending.PRUNED, pruned or outcome.reason)

    def _tell_lost(self, trial: TrialFacts, pruned: str | None) -> Tell | None:
        if pruned is not None:
            return Tell(trial.number, Ending.PRUNED, pruned)
        failed = [a.outcome.reason for a in trial.attempts if a.outcome and a.outcome.kind is OutcomeKind.FAILED]
        lost = sum(1 for attempt in trial.attempts if attempt.outcome is None and attempt.begun)
        if lost + len(failed) >= self.limits.max_attempts:
            parts = [f"its worker was lost {lost} times"] if lost else []
            parts += [f"it failed {len(failed)} times, last by {failed[-1]}"] if failed else []
            reason = f"{' and '.join(parts)} (search.max_attempts={self.limits.max_attempts})"
            return Tell(trial.number, Ending.FAIL, reason)
        return self._tell_cancelled(trial)

    def _tell_cancelled(self, trial: TrialFacts) -> Tell | None:
        if self.view.mode is Mode.CANCEL or self._target_reached:
            return Tell(trial.number, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)
        return None

    def _stops(self) -> Iterator[Stop]:
        for trial in self.view.trials:
            for attempt in self._running(trial):
                if attempt.stop is not None or attempt.worker in self._planned_names:
                    continue  # what was never sent needs no stop: its worker is cancelled
                if trial.verdict is not None:
                    yield Stop(trial.number, attempt.number, StopCause.PRUNED, trial.verdict.reason)
                elif wanted := self._wanted_stop():
                    yield Stop(trial.number, attempt.number, *wanted)

    def _wanted_stop(self) -> tuple[StopCause, str] | None:
        if self.view.mode is Mode.CANCEL:
            return StopCause.CANCELLED, "the sweep was stopped"
        if self._target_reached:
            return StopCause.CANCELLED, f"another trial reached the target {self.limits.target:g}"
        if self.view.mode is Mode.STOP:
            return StopCause.INTERRUPTED, "the sweep was interrupted"
        if self._abort_reason:
            return StopCause.INTERRUPTED, self._abort_reason
        return None

    @cached_property
    def _waiting(self) -> list[TrialFacts]:
        """Open trials that need a worker, lowest number first."""
        return [trial for trial in self.view.trials if not self._busy(trial) and self._tell(trial) is None]

    # --- workers ----------------------------------------------------------------------------------------------

    def _cancels(self) -> Iterator[Effect]:
        for worker in self._live:
            if self._unwanted(worker):
                if not worker.draining:  # says that its end, before it ever was ready, is no failure to start
                    yield Drain(worker.name)
                yield Cancel(worker.name, "nothing is left for it to do")
            elif reason := self._hopeless(worker):
                yield Cancel(worker.name, reason)

    def _unwanted(self, worker: WorkerFacts) -> bool:
        if worker.job is JobState.PLANNED and not self._going_on:
            return True
        return not worker.ready and not self._load(worker) and not self._work_left

    def _hopeless(self, worker: WorkerFacts) -> str | None:
        stops = [attempt.stop_since for _, attempt in self._load(worker) if attempt.stop_since is not None]
        if any(self._age(since) > self.limits.stop_grace for since in stops):
            return f"a trial did not stop within {self.limits.stop_grace:g} s"
        if worker.ready and self._age(worker.beat) > self.limits.silence:
            return f"no beat for {self.limits.silence:g} s"
        if not worker.ready and worker.job is JobState.RUNNING and self._age(worker.started) > self.limits.start_grace:
            return f"not ready {self.limits.start_grace:g} s after its start"
        return None

    def _assignments(self) -> Iterator[Effect]:
        for trial in self.view.trials:
            for attempt in self._running(trial):
                if not attempt.delivered:
                    yield Assign(trial.number, attempt.number, attempt.worker)
        if not self._going_on:
            return
        waiting = list(self._waiting)
        asks = self._askable
        for worker in self._live:
            for _ in range(self._free(worker)):
                if waiting:
                    trial = waiting.pop(0)
                    number = trial.attempts[-1].number + 1 if trial.attempts else 1
                    yield Assign(trial.number, number, worker.name)
                elif asks > 0:
                    asks -= 1
                    yield Ask()

    def _starts(self) -> Iterator[StartWorkers]:
        if not self._going_on:
            return
        open_to_work = [worker for worker in self._live if not worker.draining]
        per_worker = (
            self.limits.slots
            if self.limits.trials_per_worker is None
            else min(self.limits.slots, self.limits.trials_per_worker)
        )
        unserved = len(self._waiting) + self._askable - sum(self._room_left(worker) for worker in open_to_work)
        places = set(range(self.limits.workers)) - {worker.place for worker in self._live}
        count = min(len(places), math.ceil(unserved / per_worker) if unserved < math.inf else len(places))
        if count > 0:
            yield StartWorkers(tuple(sorted(places)[: int(count)]))

    def _sendings(self) -> Iterator[Send]:
        """A planned worker goes to its queue with its first trials: as many as it holds, or as are left."""
        for worker in self._live:
            more = self._room_left(worker) > 0 and self._work_left
            if worker.job is JobState.PLANNED and self._going_on and self._load(worker) and not more:
                yield Send(worker.name)

    def _drains(self) -> Iterator[Drain]:
        for worker in self._live:
            idle = not self._load(worker) and not self._work_left
            begun = worker.ready or bool(self._load(worker))
            planned = worker.job is JobState.PLANNED
            if begun and not planned and not worker.draining and (self.view.mode is not Mode.RUN or idle):
                yield Drain(worker.name)

    # --- the end ----------------------------------------------------------------------------------------------

    def _finish(self) -> Finish | None:
        if self.view.mode is Mode.DETACH:
            settled = all(worker.draining for worker in self._live)
            return Finish(Finished.DETACHED, "running trials go on by themselves") if settled else None
        if self._live:
            return None
        if self._abort_reason:
            return Finish(Finished.FAILED, self._abort_reason)
        if self.view.mode is Mode.STOP and (self.view.trials or self._askable > 0):
            return Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`")
        if self.view.mode is Mode.CANCEL and not self.view.trials:
            return Finish(Finished.CANCELLED, "the sweep was stopped")
        if not self.view.trials and self._askable <= 0:
            return Finish(Finished.DONE, self._spent_reason)
        return None

    @cached_property
    def _abort_reason(self) -> str | None:
        study, limits = self.view.study, self.limits
        judged = study.complete + study.pruned + study.failed
        if judged >= limits.min_ended_for_share and study.failed > limits.max_failure_share * judged:
            return (
                f"{study.failed} of {judged} trials failed, more than search.max_failure_share="
                f"{limits.max_failure_share:g}; see their reasons, mend the cause, raise the share and resume"
            )
        if self.view.start_failures >= limits.max_start_failures:
            last = f" ({self.view.start_failure})" if self.view.start_failure else ""
            return f"{self.view.start_failures} workers in a row ended before they were ready{last}; see `sweep logs`"
        return None

    @cached_property
    def _spent_reason(self) -> str:
        if self._target_reached:
            return f"the target {self.limits.target:g} was reached"
        if self.view.study.exhausted:
            return "the sampler has proposed all it can"
        if self.limits.trials is not None and self.view.study.asked >= self.limits.trials:
            return f"all {self.limits.trials} trials have ended"
        if self._over_tokens:
            return f"the budget of {self.limits.tokens:,} tokens is spent"
        return f"the budget of {self.limits.seconds or 0:g} s is spent"

    # --- derived facts ----------------------------------------------------------------------------------------

    @cached_property
    def _live(self) -> list[WorkerFacts]:
        return sorted((w for w in self.view.workers if w.job is not JobState.GONE), key=lambda w: w.place)

    @cached_property
    def _live_names(self) -> set[str]:
        return {worker.name for worker in self._live}

    @cached_property
    def _planned_names(self) -> set[str]:
        return {worker.name for worker in self._live if worker.job is JobState.PLANNED}

    @cached_property
    def _loads(self) -> dict[str, list[tuple[TrialFacts, AttemptFacts]]]:
        loads: dict[str, list[tuple[TrialFacts, AttemptFacts]]] = {}
        for trial in self.view.trials:
            for attempt in self._running(trial):
                loads.setdefault(attempt.worker, []).append((trial, attempt))
        return loads

    @cached_property
    def _ending(self) -> set[str]:
        """Workers that were told to end from outside, as their trials say: what they were given now would be lost."""
        outcomes = ((attempt.worker, attempt.outcome) for trial in self.view.trials for attempt in trial.attempts)
        return {worker for worker, outcome in outcomes if outcome and outcome.cause is StopCause.PREEMPTED}

    @cached_property
    def _going_on(self) -> bool:
        return self.view.mode is Mode.RUN and self._abort_reason is None and not self._target_reached

    @cached_property
    def _target_reached(self) -> bool:
        best = self.view.study.best
        return self.limits.target is not None and best is not None and best <= self.limits.target

    @cached_property
    def _over_tokens(self) -> bool:
        return self.limits.tokens is not None and self.view.tokens >= self.limits.tokens

    @cached_property
    def _askable(self) -> float:
        """How many more trials the budget allows to ask for; infinity without a limit of trials."""
        study, limits = self.view.study, self.limits
        over_time = limits.seconds is not None and self.view.seconds >= limits.seconds
        if study.exhausted or self._target_reached or self._over_tokens or over_time:
            return 0
        return math.inf if limits.trials is None else max(0, limits.trials - study.asked)

    @cached_property
    def _work_left(self) -> bool:
        return self._going_on and (self._askable > 0 or bool(self._waiting))

    def _alive(self, attempt: AttemptFacts) -> bool:
        return attempt.outcome is None and attempt.worker in self._live_names

    def _running(self, trial: TrialFacts) -> list[AttemptFacts]:
        return [attempt for attempt in trial.attempts if self._alive(attempt)]

    def _busy(self, trial: TrialFacts) -> bool:
        return bool(self._running(trial))

    def _load(self, worker: WorkerFacts) -> list[tuple[TrialFacts, AttemptFacts]]:
        return self._loads.get(worker.name, [])

    def _room_left(self, worker: WorkerFacts) -> float:
        """Trials that a worker can still take, now or once it is ready."""
        if worker.draining or worker.name in self._ending:
            return 0
        held = self.limits.slots if worker.slots is None else worker.slots
        slots = held - len(self._load(worker))
        quota = self.limits.trials_per_worker
        return max(0, slots if quota is None else min(slots, quota - worker.assigned))

    def _free(self, worker: WorkerFacts) -> int:
        takes = worker.ready or worker.job is JobState.PLANNED
        return int(self._room_left(worker)) if takes and not self._hopeless(worker) else 0

    def _age(self, since: float) -> float:
        return self.now - since
