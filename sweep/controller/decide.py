"""What the controller does next: a pure function of facts, limits and the time.

Invariants: total and deterministic; imports nothing that acts. Derived anew from the facts each time, so that a
restarted controller decides as the old one would have. A trial is told only when no attempt of it can be
running; PRUNED is told only once the attempt has stopped; a trial is assigned only when its last attempt is over.
A paused trial is not assigned: its verdict is lifted by the study, which promotes it, or it is told in the end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sweep.controller.budget import Budget
from sweep.controller.occupancy import Occupancy
from sweep.model import (
    Ask,
    AskFinal,
    Assign,
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
from trainer.contract import Outcome, OutcomeKind, StopCause


def decide(view: View, limits: Limits, now: float) -> tuple[Effect, ...]:
    """The effects that these facts call for, in the order in which to carry them out."""
    return tuple(_Decision(view, limits, now).effects())


@dataclass
class _Decision:
    view: View
    limits: Limits
    now: float

    @cached_property
    def _budget(self) -> Budget:
        return Budget(self.view, self.limits)

    @cached_property
    def _occupancy(self) -> Occupancy:
        return Occupancy(self.view, self.limits)

    def effects(self) -> Iterator[Effect]:
        if self.view.mode is Mode.HANDOVER:
            yield Finish(Finished.HANDED_OVER, "another controller goes on")
            return
        ended = [tell for tell in self._tells.values() if tell]
        if self._settled:  # one that was laid aside in this very observation is among both
            ended += [self._settle(number) for number in self.view.study.aside if not self._tells.get(number)]
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

    @cached_property
    def _tells(self) -> dict[int, Tell | None]:
        """What is told of each open trial without a running attempt."""
        return {trial.number: self._tell(trial) for trial in self._occupancy.resting}

    def _tell(self, trial: TrialFacts) -> Tell | None:
        last = trial.attempts[-1] if trial.attempts else None
        if last is None:
            return self._tell_cancelled(trial)
        if self._occupancy.alive(last):
            return None
        if trial.paused and not _is_final(last.outcome):
            return self._settle(trial.number) if self._settled else None
        pruned = trial.verdict.reason if trial.verdict and not trial.paused else None
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
        if self.view.mode is Mode.CANCEL or self._target_ends:
            return Tell(trial.number, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)
        return None

    def _settle(self, number: int) -> Tell:
        """What becomes of a paused trial when nothing more will be promoted."""
        return Tell(number, Ending.PRUNED, "it was paused, and not promoted before the end")

    @cached_property
    def _settled(self) -> bool:
        """Whether paused trials stay where they are for good."""
        if self.view.mode is Mode.CANCEL or self._target_ends:
            return True
        idle = not any(not trial.paused or self._occupancy.busy(trial) for trial in self.view.trials)
        return self._going_on and idle and self._budget.askable <= 0 and not self._promotable

    @cached_property
    def _promotable(self) -> bool:
        """Whether the study may know a paused trial worth going on with."""
        return self._budget.left and not self.view.study.stuck and self._any_paused

    @cached_property
    def _any_paused(self) -> bool:
        return bool(self.view.study.aside) or any(
            trial.paused and not self._occupancy.busy(trial) for trial in self.view.trials
        )

    def _stops(self) -> Iterator[Stop]:
        wanted, planned = self._wanted_stop, self._occupancy.planned_names
        for trial, attempt in self._occupancy.running:
            if (trial.verdict is None and wanted is None) or attempt.stop is not None or attempt.worker in planned:
                continue  # what was never sent needs no stop: its worker is cancelled
            if trial.verdict is not None:
                cause = StopCause.PAUSED if trial.paused else StopCause.PRUNED
                yield Stop(trial.number, attempt.number, cause, trial.verdict.reason)
            elif wanted is not None:
                yield Stop(trial.number, attempt.number, *wanted)

    @cached_property
    def _wanted_stop(self) -> tuple[StopCause, str] | None:
        if self.view.mode is Mode.CANCEL:
            return StopCause.CANCELLED, "the sweep was stopped"
        if self._target_ends:
            return StopCause.CANCELLED, f"another trial reached the target {self.limits.target:g}"
        if self.view.mode is Mode.STOP:
            return StopCause.INTERRUPTED, "the sweep was interrupted"
        if self._abort_reason:
            return StopCause.INTERRUPTED, self._abort_reason
        return None

    @cached_property
    def _waiting(self) -> list[TrialFacts]:
        """Open trials that need a worker, lowest number first."""
        return [trial for trial in self._occupancy.resting if not trial.paused and self._tells[trial.number] is None]

    # --- workers ----------------------------------------------------------------------------------------------

    def _cancels(self) -> Iterator[Effect]:
        for worker in self._occupancy.live:
            if (not worker.ready or worker.job is JobState.PLANNED) and self._unwanted(worker):
                if not worker.draining:  # says that its end, before it ever was ready, is no failure to start
                    yield Drain(worker.name)
                yield Cancel(worker.name, "nothing is left for it to do")
            elif reason := self._hopeless.get(worker.name):
                yield Cancel(worker.name, reason)

    def _unwanted(self, worker: WorkerFacts) -> bool:
        if worker.job is JobState.PLANNED and not self._going_on:
            return True
        return not worker.ready and worker.name not in self._occupancy.loads and not self._work_left

    @cached_property
    def _hopeless(self) -> dict[str, str]:
        """Why a worker is not waited for any longer; of most there is nothing to say."""
        return {worker.name: reason for worker in self._occupancy.live if (reason := self._given_up(worker))}

    def _given_up(self, worker: WorkerFacts) -> str | None:
        limits, now = self.limits, self.now
        stop = self._occupancy.oldest_stops.get(worker.name)
        if stop is not None and not worker.ready and worker.job is JobState.PENDING:
            return "its trials are to stop, and its job has not started"
        if stop is not None and now - stop > limits.stop_grace:
            return f"a trial did not stop within {limits.stop_grace:g} s"
        if worker.ready and now - worker.beat > limits.silence:
            return f"no beat for {limits.silence:g} s"
        if not worker.ready and worker.job is JobState.RUNNING and now - worker.started > limits.start_grace:
            return f"not ready {limits.start_grace:g} s after its start"
        return None

    def _assignments(self) -> Iterator[Effect]:
        for trial, attempt in self._occupancy.running:
            if not attempt.delivered:
                yield Assign(trial.number, attempt.number, attempt.worker)
        if not self._going_on:
            return
        waiting = deque(self._waiting)
        asks, asked = self._budget.askable, False
        finals = self._finals
        for worker in self._occupancy.live:
            for _ in range(self._free(worker) if self._occupancy.rooms[worker.name] else 0):
                if waiting:
                    trial = waiting.popleft()
                    number = trial.attempts[-1].number + 1 if trial.attempts else 1
                    yield Assign(trial.number, number, worker.name)
                elif asks > 0 or self._promotable:
                    asked = True
                    yield Ask(new=asks > 0, worker=worker.name)
                    asks -= 1
                elif finals > 0:
                    finals -= 1
                    yield AskFinal()
        if asks <= 0 and self._promotable and not asked and not self._waiting and self._free_places:
            yield Ask(new=False)  # whether a worker is worth starting for it

    def _starts(self) -> Iterator[StartWorkers]:
        if not self._going_on:
            return
        places = self._free_places
        if not places:
            return
        open_to_work = [worker for worker in self._occupancy.live if not worker.draining]
        per_worker = (
            self.limits.slots
            if self.limits.trials_per_worker is None
            else min(self.limits.slots, self.limits.trials_per_worker)
        )
        unserved = (
            len(self._waiting)
            + self._budget.askable
            + self._finals
            - sum(self._occupancy.rooms[worker.name] for worker in open_to_work)
        )
        count = min(len(places), math.ceil(unserved / per_worker) if unserved < math.inf else len(places))
        if count > 0:
            yield StartWorkers(tuple(sorted(places)[: int(count)]))

    @cached_property
    def _free_places(self) -> set[int]:
        return set(range(self.limits.workers)) - {worker.place for worker in self._occupancy.live}

    def _sendings(self) -> Iterator[Send]:
        """A planned worker goes to its queue with its first trials: as many as it holds, or as are left."""
        for worker in self._occupancy.live if self._occupancy.planned_names and self._going_on else ():
            more = self._occupancy.rooms[worker.name] > 0 and self._work_left
            if worker.job is JobState.PLANNED and worker.name in self._occupancy.loads and not more:
                yield Send(worker.name)

    def _drains(self) -> Iterator[Drain]:
        if self.view.mode is Mode.RUN and self._work_left:
            return
        # each trial that runs may yet lift one that is paused above the others, and a worker costs a start
        spare = len(self._occupancy.running) if self._going_on and self._any_paused and self._budget.left else 0
        for worker in self._occupancy.live:
            if (
                worker.draining
                or worker.job is JobState.PLANNED
                or not (worker.ready or worker.name in self._occupancy.loads)
            ):
                continue
            if self.view.mode is Mode.RUN:
                if worker.name in self._occupancy.loads:
                    continue
                spare -= 1
                if spare >= 0:
                    continue
            yield Drain(worker.name)

    # --- the end ----------------------------------------------------------------------------------------------

    def _finish(self) -> Finish | None:
        if self.view.mode is Mode.DETACH:
            settled = all(worker.draining for worker in self._occupancy.live)
            return Finish(Finished.DETACHED, "running trials go on by themselves") if settled else None
        if self._occupancy.live:
            return None
        if self._abort_reason:
            return Finish(Finished.FAILED, self._abort_reason)
        open_trials = bool(self.view.trials or self.view.study.aside)
        if self.view.mode is Mode.STOP and (open_trials or self._budget.askable > 0 or self._finals > 0):
            return Finish(Finished.STOPPED, "trials were stopped with a checkpoint and go on with `sweep resume`")
        if self.view.mode is Mode.CANCEL and not open_trials:
            return Finish(Finished.CANCELLED, "the sweep was stopped")
        if not open_trials and self._budget.askable <= 0 and self._finals <= 0:
            return Finish(Finished.DONE, self._budget.reason)
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

    # --- derived facts ----------------------------------------------------------------------------------------

    def _free(self, worker: WorkerFacts) -> int:
        takes = worker.ready or worker.job is JobState.PLANNED
        room = self._occupancy.rooms[worker.name]
        return room if room and takes and worker.name not in self._hopeless else 0

    @cached_property
    def _going_on(self) -> bool:
        return self.view.mode is Mode.RUN and self._abort_reason is None and not self._target_ends

    @cached_property
    def _target_ends(self) -> bool:
        """A target ends the search; finals are trained after it, as after any other end."""
        return self._budget.target_reached and self.view.study.searching

    @cached_property
    def _work_left(self) -> bool:
        return self._going_on and (
            self._budget.askable > 0 or bool(self._waiting) or self._promotable or self._finals > 0
        )

    @cached_property
    def _finals(self) -> int:
        """Finals to ask for now: only where nothing else is left to begin, and all other trials have ended."""
        if self._budget.askable > 0 or self._any_paused or self.view.study.searching:
            return 0
        return self.view.study.finals


def _is_final(outcome: Outcome | None) -> bool:
    """Whether no later attempt can follow this one, whatever the study would like."""
    match outcome:
        case Outcome(kind=OutcomeKind.DIVERGED) | Outcome(kind=OutcomeKind.STOPPED, cause=StopCause.CANCELLED):
            return True
        case Outcome(kind=OutcomeKind.FAILED):
            return not outcome.resumable
    return False
