"""Schedules the attempts that a worker holds: several in a pack, or one by itself.

Invariants: attempts start in the order in which they were added. An attempt that cannot join the running ones waits
until they have ended, and no later one overtakes it. Then an attempt that cannot be packed at all trains by itself, and
one with another base begins a new pack. A waiting attempt still obeys a stop. Nothing that happens to one attempt ends
another. If memory runs out while an attempt is built, it waits until another one ends; if no other one is running, it
is built once more without the kept base.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from trainer.base import Cache
from trainer.contract import FailureKind, Outcome, OutcomeKind
from trainer.metrics.answers import answer_all
from trainer.packed.memory import GIB, MemoryProbe, device_memory
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot, SlotResult
from trainer.randomness import Randomness
from trainer.slots import MAX_SLOTS, AutoSlots
from trainer.task import Task

_log = logging.getLogger(__name__)

NO_LIMIT = MAX_SLOTS + 1


@dataclass
class Scheduler:
    """Trains up to `slots` attempts at the same time.

    Args:
        slots: 0 for a number that it chooses by measuring.
        cache: what the worker keeps between trials.
        announce: called with the number of slots whenever it chooses one.
        memory_probe: the memory of a device.
    """

    slots: int
    cache: Cache
    announce: Callable[[int], None]
    memory_probe: MemoryProbe = device_memory
    _waiting: deque[Task] = field(default_factory=deque)
    _packed: dict[Slot, Task] = field(default_factory=dict)
    _alone: tuple[Task, Randomness] | None = None
    _auto: AutoSlots | None = None
    _base: object = None
    _max_packed: int = NO_LIMIT  # lowered when one more trial exceeded the memory, until a trial ends

    def __post_init__(self) -> None:
        if self.slots == 0:
            self.slots = 1
            self._auto = AutoSlots() if torch.cuda.is_available() else None
            if self._auto is None:
                _log.info("slots: auto holds one trial at a time: packing does not pay on the CPU")
            self.announce(self.slots)
        self._pack = Pack(memory_probe=self.memory_probe)

    @property
    def free(self) -> int:
        """How many more attempts it takes; negative after the number of slots was lowered."""
        return self.slots - len(self._waiting) - len(self._packed) - (self._alone is not None)

    @property
    def busy(self) -> bool:
        """Whether it holds any attempt."""
        return bool(self._waiting or self._packed or self._alone)

    def add(self, task: Task) -> None:
        """Take an attempt; it begins with the next step, or as soon as it can."""
        self._waiting.append(task)

    def end_waiting(self, outcome: Outcome) -> None:
        """End all attempts that have not begun with this outcome."""
        while self._waiting:
            self._waiting.popleft().end(outcome)

    def step(self) -> None:
        """Begin the attempts that can, then train one micro-batch of every running attempt."""
        self._obey_stops()
        self._begin()
        if self._packed:
            self._train_pack()
        elif self._alone is not None:
            self._train_alone(*self._alone)

    # --- beginning ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        while self._waiting and self._alone is None and len(self._packed) < min(self.slots, self._max_packed):
            head = self._waiting[0]
            if (refused := self._refuse(head)) is not None:
                self._waiting.popleft()
                head.end(refused)
                continue
            if self._packed and (head.base != self._base or not self._fits(head)):
                return
            self._waiting.popleft()
            if not self._start(head):
                return

    def _start(self, task: Task) -> bool:
        """Build an attempt and begin to train it; False if no other attempt can start now."""
        others = bool(self._packed)
        if not others:
            self._max_packed = NO_LIMIT
            if task.base != self._base:
                self._pack = self._new_pack()  # frees the old base before the next one is loaded
        ended = self._build(task, others)
        reason = None
        if ended is None:
            try:
                reason = self._why_alone(task)
                if reason is None:
                    self._join(task)
                    return True
            except Exception as error:  # it concerns this trial only: the others continue
                ended = task.attempt.fail(error)
        if ended is not None:
            if ended.failure is FailureKind.OUT_OF_MEMORY and others:
                self._wait_for_memory(task)
                return False
            self._end(task, ended)
            return True
        if not self._one_by_one:
            _log.info("trial %d trains by itself: %s", task.spec.trial, reason)
        self._alone = task, Randomness()
        return False

    def _build(self, task: Task, others: bool) -> Outcome | None:
        """Build an attempt; once more without the kept base if that needs its memory. The outcome if it ended."""
        ended = task.attempt.begin()
        if ended is not None and ended.failure is FailureKind.OUT_OF_MEMORY and not others and self._drop_base():
            _log.warning("trial %d begins anew: no memory for its model beside the kept base", task.spec.trial)
            task.reset()
            ended = task.attempt.begin()
        return ended

    def _wait_for_memory(self, task: Task) -> None:
        """Put an attempt for which memory ran out back to the head of the queue."""
        _log.info("trial %d waits: no memory beside %d other trials", task.spec.trial, len(self._packed))
        task.reset()
        torch.cuda.empty_cache()
        self._waiting.appendleft(task)
        self._limit_pack()

    def _drop_base(self) -> bool:
        """Free the kept base, since a model is first built with one of its own; False if none was kept."""
        kept = self.cache.drop("base")
        self._pack = self._new_pack()
        torch.cuda.empty_cache()
        return kept

    def _why_alone(self, task: Task) -> str | None:
        """Why a trial that was built trains by itself; None if it is packed."""
        return "slots: 1" if self._one_by_one else self._pack.refusal_reason(task.attempt.recipe)

    def _join(self, task: Task) -> None:
        """Put a trial that was built into the pack."""
        self._packed[self._pack.put(task.attempt.recipe)] = task
        self._base = task.base

    @property
    def _one_by_one(self) -> bool:
        """Whether nothing is ever packed, so that torchtune's own modules train."""
        return self.slots == 1 and self._auto is None

    def _refuse(self, task: Task) -> Outcome | None:
        """The outcome of a trial that could not train here even alone, before anything of it is built; else None."""
        frugal = any(task.spec.config.get(f"enable_activation_{how}") for how in ("checkpointing", "offloading"))
        if task.base != self._base or frugal:
            return None
        if (reason := self._pack.never_fits(*task.size)) is None:
            return None
        _log.warning("trial %d is refused: %s", task.spec.trial, reason)
        return Outcome(OutcomeKind.FAILED, reason, failure=FailureKind.OUT_OF_MEMORY)

    def _fits(self, task: Task) -> bool:
        """Whether one more trial is estimated to fit into memory beside the running ones."""
        if (shortage := self._pack.memory_shortage(*task.size)) is None:
            return True
        need, memory = shortage
        if self._max_packed > len(self._packed):
            _log.info(
                "trial %d waits: with it a pass needs about %.3g GiB, and %.3g GiB are free",
                task.spec.trial,
                need / GIB,
                memory.free / GIB,
            )
        self._limit_pack()
        return False

    def _limit_pack(self) -> None:
        """Hold no more trials than now, until one ends."""
        self._max_packed = len(self._packed)
        self._apply(self._auto.memory_full() if self._auto else None)

    # --- training -----------------------------------------------------------------------------------------------

    def _train_pack(self) -> None:
        began, before = time.perf_counter(), {slot: slot.recipe.tokens for slot in self._packed}
        results = self._pack.step()
        seconds = time.perf_counter() - began
        trained = {slot: slot.recipe.tokens - tokens for slot, tokens in before.items()}
        if self._auto is not None:
            self._apply(self._auto.observe(len(before), sum(trained.values()), seconds))
        for result in results:
            task = self._packed[result.slot]
            task.attempt.count_seconds(seconds, trained[result.slot] / max(1, sum(trained.values())))
            self._end_slot(result.slot, self._take_result(task, result))
        self._answer_questions()
        for result in results:
            if result.slot in self._packed and result.progress is not None:
                self._end_slot(result.slot, self._packed[result.slot].attempt.after(result.progress))

    def _take_result(self, task: Task, result: SlotResult) -> Outcome | None:
        if result.progress is None:
            return task.attempt.fail(result.error or RuntimeError("no micro-batch"))
        return task.attempt.take(result.progress)

    def _answer_questions(self) -> None:
        """Let all trials that must answer prompts for their reports do so together."""
        measurements = {slot: task.attempt.measurement for slot, task in self._packed.items()}
        askers = {slot: asker for slot, asker in measurements.items() if asker is not None and asker.asks}
        if not askers:
            return
        try:
            with Randomness().own():  # what answers draws from generators of its own
                answer_all(askers, self._pack.answer)
        except torch.OutOfMemoryError as error:  # each trial tries by itself when it reports, and fails by itself
            error.__traceback__ = None
            _log.warning("no memory for the answers of %d trials together", len(askers))
            torch.cuda.empty_cache()

    def _end_slot(self, slot: Slot, ended: Outcome | None) -> None:
        """Let a trial leave the pack if it has ended."""
        if ended is None:
            return
        task = self._packed.pop(slot)
        self._pack.remove(slot)
        self._max_packed = NO_LIMIT
        self._end(task, ended)

    def _train_alone(self, task: Task, random: Randomness) -> None:
        if not random.resumed:
            random.resume()  # others may have drawn since it was built; from here on nothing else draws
        ended = task.attempt.advance()
        if ended is not None:
            self._alone = None
            self._end(task, ended)

    def _apply(self, change: str | None) -> None:
        """Apply a choice of `slots: auto`, if the sentence says that it has changed."""
        if change is None or self._auto is None:
            return
        _log.info("slots: auto holds %s", change)
        self.slots = self._auto.slots
        if self.slots == 1:
            self._pack.budget = 1  # the trials of the pack train one after another
        self.announce(self.slots)

    # --- ending -------------------------------------------------------------------------------------------------

    def _obey_stops(self) -> None:
        for task in list(self._waiting):
            if stop := task.attempt.should_stop():
                self._waiting.remove(task)
                task.end(Outcome(OutcomeKind.STOPPED, stop[1], cause=stop[0]))
        if self._alone is not None and self._packed:  # it was built, and waits until the pack has ended
            task, _ = self._alone
            if (ended := task.attempt.obey_stop()) is not None:
                self._alone = None
                task.end(ended)

    def _end(self, task: Task, outcome: Outcome) -> None:
        if outcome.failure is FailureKind.OUT_OF_MEMORY and not self._packed:
            self.cache.clear()
            self._pack = self._new_pack()
        task.end(outcome)

    def _new_pack(self) -> Pack:
        return Pack(self._pack.budget, self.memory_probe)
