"""What the controller does next: a pure function of facts, limits and the time.

Invariants: total and deterministic; imports nothing that acts. Every decision is derived from the facts alone, so a
restarted controller decides as the old one would have. The study is told how a trial ended only when no attempt of it
can be running (see `endings`). A trial is assigned only when its last attempt is over, and not while it is paused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from functools import cached_property

from sweep.controller.endings import Endings
from sweep.controller.situation import Situation
from sweep.model.effects import Ask, AskFinal, Assign, Cancel, Drain, Effect, Finish, Send, StartWorkers, Stop
from sweep.model.facts import View, WorkerFacts
from sweep.model.limits import Limits
from sweep.model.states import Finished, JobState, Mode
from trainer.contract import StopCause

STOPPED_REASON = "trials were stopped with a checkpoint and go on with `sweep resume`"


def decide(view: View, limits: Limits, now: float) -> tuple[Effect, ...]:
    """The effects that these facts call for, in the order in which to carry them out.

    Args:
        now: the time, on the clock of the times in `view`, in seconds.
    """
    return tuple(_Decision(view, limits, now).effects())


class _Decision:
    """One decision; each method yields the effects of one kind."""

    def __init__(self, view: View, limits: Limits, now: float) -> None:
        self._view, self._limits, self._now = view, limits, now
        self._situation = Situation(view, limits)
        self._budget, self._occupancy = self._situation.budget, self._situation.occupancy
        self._endings = Endings(self._situation, now)

    def effects(self) -> Iterator[Effect]:
        if self._view.mode is Mode.HANDOVER:
            yield Finish(Finished.HANDED_OVER, "another controller goes on")
            return
        yield from self._endings.tells
        yield from self._stops()
        yield from self._cancels()
        yield from self._assignments()
        yield from self._starts()
        yield from self._submissions()
        yield from self._drains()
        if not self._endings.tells and (finish := self._finish()):
            yield finish

    # --- attempts that must stop --------------------------------------------------------------------------------------

    def _stops(self) -> Iterator[Stop]:
        for trial, attempt in self._occupancy.running:
            if attempt.stop is not None or attempt.worker in self._occupancy.planned:
                continue  # an attempt that was never submitted needs no stop: its worker is cancelled
            if trial.verdict is not None:
                cause = StopCause.PAUSED if trial.paused else StopCause.PRUNED
                yield Stop(trial.number, attempt.number, cause, trial.verdict.reason)
            elif self._stop_all is not None:
                yield Stop(trial.number, attempt.number, *self._stop_all)

    @cached_property
    def _stop_all(self) -> tuple[StopCause, str] | None:
        """Cause and reason for which every running attempt must stop; None if they may go on."""
        if self._view.mode is Mode.CANCEL:
            return StopCause.CANCELLED, "the sweep was stopped"
        if self._situation.target_ends_search:
            return StopCause.CANCELLED, f"another trial reached the target {self._limits.target:g}"
        if self._view.mode is Mode.STOP:
            return StopCause.INTERRUPTED, "the sweep was interrupted"
        if self._situation.abort_reason:
            return StopCause.INTERRUPTED, self._situation.abort_reason
        return None

    # --- workers that must go -----------------------------------------------------------------------------------------

    def _cancels(self) -> Iterator[Effect]:
        for worker in self._occupancy.live:
            if self._is_superfluous(worker):
                if not worker.draining:  # so that its end before it was ready does not count as a failed start
                    yield Drain(worker.name)
                yield Cancel(worker.name, "nothing is left for it to do")
            elif reason := self._unresponsive.get(worker.name):
                yield Cancel(worker.name, reason)

    def _is_superfluous(self, worker: WorkerFacts) -> bool:
        """Whether a worker that is not ready yet has nothing to do."""
        if worker.job is JobState.PLANNED and not self._situation.continues:
            return True
        return not worker.ready and worker.name not in self._occupancy.loads and not self._has_work

    @cached_property
    def _unresponsive(self) -> dict[str, str]:
        """Workers that are not waited for any longer, with the reason."""
        reasons = ((worker.name, self._why_unresponsive(worker)) for worker in self._occupancy.live)
        return {name: reason for name, reason in reasons if reason}

    def _why_unresponsive(self, worker: WorkerFacts) -> str | None:
        limits, now = self._limits, self._now
        stopping_since = self._occupancy.oldest_stops.get(worker.name)
        if stopping_since is not None and not worker.ready and worker.job is JobState.PENDING:
            return "its trials are to stop, and its job has not started"
        if self._view.no_space:
            return None  # without space no heartbeat, no outcome and no sign of a start can be written
        if stopping_since is not None and now - stopping_since > limits.stop_grace:
            return f"a trial did not stop within {limits.stop_grace:g} s"
        if worker.ready and now - worker.beat > limits.silence:
            return f"no heartbeat for {limits.silence:g} s"
        if not worker.ready and worker.job is JobState.RUNNING and now - worker.started > limits.start_grace:
            return f"not ready {limits.start_grace:g} s after its start"
        return None

    def _drains(self) -> Iterator[Drain]:
        """Idle workers end when nothing is left to start; in every mode but RUN, all workers do."""
        running_mode = self._view.mode is Mode.RUN
        if running_mode and self._has_work:
            return
        kept = self._kept_for_promotions + len(self._endings.awaited)
        for worker in self._occupancy.live:
            busy = worker.name in self._occupancy.loads
            if worker.draining or worker.job is JobState.PLANNED or not (worker.ready or busy):
                continue
            if running_mode and busy:
                continue
            if running_mode and kept > 0:
                kept -= 1
                continue
            yield Drain(worker.name)

    @cached_property
    def _kept_for_promotions(self) -> int:
        """How many idle workers to keep: each running trial may lead to the promotion of a paused one, and a new
        worker takes long to start."""
        may_lead = self._situation.continues and self._situation.has_paused and self._budget.allows_more
        return len(self._occupancy.running) if may_lead else 0

    # --- trials and workers that start --------------------------------------------------------------------------------

    def _assignments(self) -> Iterator[Effect]:
        for trial, attempt in self._occupancy.running:
            if not attempt.delivered:
                yield Assign(trial.number, attempt.number, attempt.worker)
        if not self._situation.may_start:
            return
        waiting = deque(self._endings.waiting)
        new, finals, asked = self._budget.new_trials, self._situation.finals, False
        first_has_begun = bool(self._occupancy.running) or self._first_failed
        for worker in self._occupancy.live:
            for _ in range(self._slots_to_fill(worker)):
                if self._situation.first_alone and first_has_begun:
                    return
                first_has_begun = True
                if waiting:
                    trial = waiting.popleft()
                    number = trial.attempts[-1].number + 1 if trial.attempts else 1
                    yield Assign(trial.number, number, worker.name)
                elif new > 0 or self._situation.may_promote:
                    asked = True
                    yield Ask(new_allowed=new > 0, worker=worker.name)
                    new -= 1
                elif finals > 0:
                    finals -= 1
                    yield AskFinal()
        if new <= 0 and self._situation.may_promote and not asked and not self._endings.waiting and self._free_places:
            yield Ask(new_allowed=False)  # whether a paused trial is worth starting a worker

    def _slots_to_fill(self, worker: WorkerFacts) -> int:
        """How many trials a worker can be given now; a planned one is given its trials before it is submitted."""
        takes_trials = worker.ready or worker.job is JobState.PLANNED
        free = self._occupancy.free_slots[worker.name]
        return free if free and takes_trials and worker.name not in self._unresponsive else 0

    def _starts(self) -> Iterator[StartWorkers]:
        """As many new workers as the trials need that no other worker will take."""
        places = self._free_places
        if not self._situation.may_start or not places:
            return
        slots, quota = self._limits.slots, self._limits.trials_per_worker
        trials = len(self._endings.waiting) + self._budget.new_trials + self._situation.finals
        free = sum(self._occupancy.free_slots[worker.name] for worker in self._occupancy.live if not worker.draining)
        if trials < math.inf:
            count = min(len(places), math.ceil((trials - free) / (slots if quota is None else min(slots, quota))))
        else:
            count = len(places)
        if self._situation.first_alone:
            count = 0 if self._first_failed else min(count, 1 - len(self._occupancy.live))
        if count > 0:
            yield StartWorkers(tuple(sorted(places)[:count]))

    @cached_property
    def _first_failed(self) -> bool:
        """Whether the study is told in this very round that a trial could not be built; the next one may end all."""
        return any(tell.unbuildable for tell in self._endings.tells)

    @cached_property
    def _free_places(self) -> set[int]:
        return set(range(self._limits.workers)) - {worker.place for worker in self._occupancy.live}

    def _submissions(self) -> Iterator[Send]:
        """A planned worker is submitted with its first trials: as many as it has slots, or as are left."""
        if not self._occupancy.planned or not self._situation.may_start:
            return
        for worker in self._occupancy.live:
            is_full = self._situation.first_alone or self._occupancy.free_slots[worker.name] <= 0
            gets_more = not is_full and self._has_work
            if worker.job is JobState.PLANNED and worker.name in self._occupancy.loads and not gets_more:
                yield Send(worker.name)

    @cached_property
    def _has_work(self) -> bool:
        """Whether there is anything that a free worker could start."""
        situation = self._situation
        could_start = self._budget.new_trials > 0 or situation.may_promote or situation.finals > 0
        return situation.continues and (could_start or bool(self._endings.waiting))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Finish | None:
        """How the controller's run ends, if it does now."""
        view, situation = self._view, self._situation
        if view.mode is Mode.DETACH:
            all_draining = all(worker.draining for worker in self._occupancy.live)
            return self._interrupted(Finished.DETACHED, "running trials go on by themselves") if all_draining else None
        if self._occupancy.live:
            return None
        if situation.abort_reason:
            return Finish(Finished.FAILED, situation.abort_reason)
        open_trials = bool(view.trials or view.study.suspended)
        left = open_trials or self._budget.new_trials > 0 or situation.finals > 0
        if view.mode is Mode.STOP and left:
            return self._interrupted(Finished.STOPPED, STOPPED_REASON)
        if view.mode is Mode.CANCEL and not open_trials:
            return Finish(Finished.CANCELLED, "the sweep was stopped")
        return None if left else self._done()

    def _done(self) -> Finish:
        """How a run ends that has nothing left to do: as a failure if no trial is complete."""
        study = self._view.study
        if study.complete or not study.ended or not self._limits.needs_complete:
            return Finish(Finished.DONE, self._budget.reason)
        kinds = {"failed": study.failed, "pruned": study.pruned, "cancelled": study.cancelled}
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        last = f"; the last failure: {study.failure}" if study.failure else ""
        return Finish(
            Finished.FAILED,
            f"{self._budget.reason}, and none is complete: {counts}{last}; see `sweep status` for each reason",
        )

    def _interrupted(self, how: Finished, reason: str) -> Finish:
        """How a run ends that the user has interrupted: as a failure if the sweep waited for space."""
        if self._view.no_space:
            return Finish(Finished.FAILED, f"{self._view.no_space}; free some, then `sweep resume`")
        return Finish(how, reason)
