"""The attempts that a worker holds: in a pack, or one by itself.

Invariants: attempts are started in the order in which they were given. One that cannot join those that run waits
until they have ended, and none that came later overtakes it: what cannot be packed at all then trains by itself, and
another base then begins a pack of its own. Whatever waits still obeys a stop. What happens to one attempt ends no
other; where memory runs out while one is being built, it waits for a place to get free, or, where it has all places
to itself, is built once more without the kept base.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import FailureKind, Outcome, OutcomeKind, TrialSpec
from trainer.packed.memory import GIB, Memories, device_memory
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.randomness import Randomness
from trainer.slots import MOST, Growth

_log = logging.getLogger(__name__)

# LoRA hyperparameters that trials of one pack may differ in; all else of the model must be the same.
FREE_KEYS = ("lora_rank", "lora_alpha", "lora_dropout")


@dataclass(slots=True, eq=False)
class Task:
    """An attempt that was given to the scheduler.

    Args:
        make: a fresh `Attempt`; more than once, where building it ran out of memory.
        end: told its outcome, once.
    """

    spec: TrialSpec
    make: Callable[[], Attempt]
    end: Callable[[Outcome], None]
    _attempt: Attempt | None = None

    @property
    def attempt(self) -> Attempt:
        if self._attempt is None:
            self._attempt = self.make()
        return self._attempt

    def anew(self) -> None:
        """Forget the attempt that was made."""
        self._attempt = None

    @property
    def size(self) -> tuple[int, int]:
        """Its adapter's rank and its micro-batches' rows."""
        model: Any = self.spec.config["model"]
        return int(model["lora_rank"]), int(self.spec.config["batch_size"])

    @property
    def base(self) -> object:
        """What trials must have in common to share a pack."""
        cfg = self.spec.config
        model = {key: value for key, value in cfg["model"].items() if key not in FREE_KEYS}
        files = {key: value for key, value in cfg["checkpointer"].items() if key not in ("output_dir",)}
        return repr((model, files, cfg.get("device"), cfg.get("dtype")))


@dataclass
class Scheduler:
    """Up to `slots` attempts side by side.

    Args:
        slots: 0 for a number chosen by measuring.
        cache: what the worker keeps between trials.
        announce: told how many attempts it holds at most, whenever it chooses anew.
        memories: what memory a device has for a pack.
    """

    slots: int
    cache: Cache
    announce: Callable[[int], None]
    memories: Memories = device_memory
    _waiting: deque[Task] = field(default_factory=deque)
    _packed: dict[Slot, Task] = field(default_factory=dict)
    _alone: tuple[Task, Randomness] | None = None
    _growth: Growth | None = None
    _base: object = None
    _crowded: int = MOST + 1

    def __post_init__(self) -> None:
        if self.slots == 0:
            self.slots = 1
            self._growth = Growth() if torch.cuda.is_available() else None
            if self._growth is None:
                _log.info("slots: auto holds one trial at a time: packing does not pay on the CPU")
            self.announce(self.slots)
        self._pack = Pack(memories=self.memories)

    @property
    def free(self) -> int:
        """How many more it takes."""
        return self.slots - len(self._waiting) - len(self._packed) - (self._alone is not None)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._packed or self._alone)

    def add(self, task: Task) -> None:
        """Take an attempt; it begins with the next pass, or when it can."""
        self._waiting.append(task)

    def give_back(self, outcome: Outcome) -> None:
        """End what has not begun."""
        while self._waiting:
            self._waiting.popleft().end(outcome)

    def step(self) -> None:
        """Begin what can begin, then train a micro-batch of every attempt that runs."""
        self._obey_stops()
        self._begin()
        if self._packed:
            self._train_pack()
        elif self._alone is not None:
            self._train_alone(*self._alone)

    # --- beginning ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        while self._waiting and self._alone is None and len(self._packed) < min(self.slots, self._crowded):
            head = self._waiting[0]
            if (ended := self._refused(head)) is not None:
                self._waiting.popleft()
                head.end(ended)
                continue
            if self._packed and (head.base != self._base or not self._fits(head)):
                return
            self._waiting.popleft()
            if not self._start(head):
                return

    def _start(self, task: Task) -> bool:
        """False where nothing else can be started now."""
        beside = bool(self._packed)
        if not beside:
            self._crowded = MOST + 1
            if task.base != self._base:
                self._pack = self._another_pack()  # lets go of the base before the next one is loaded
        ended, reason = task.attempt.begin(), None
        if ended is not None and ended.failure is FailureKind.OUT_OF_MEMORY and not beside and self._let_go():
            _log.warning("trial %d begins anew: no memory for its model beside the kept base", task.spec.trial)
            task.anew()
            ended = task.attempt.begin()
        if ended is None:
            try:
                reason = self._apart(task)
                if reason is None:
                    self._join(task)
                    return True
            except Exception as error:  # of this trial alone: the others go on
                ended = task.attempt.fail(error)
        if ended is not None:
            if ended.failure is FailureKind.OUT_OF_MEMORY and beside:
                _log.info("trial %d waits: no memory beside %d other trials", task.spec.trial, len(self._packed))
                task.anew()
                torch.cuda.empty_cache()
                self._waiting.appendleft(task)
                self._no_more()
                return False
            self._end(task, ended)
            return True
        if not self._one_by_one:
            _log.info("trial %d trains by itself: %s", task.spec.trial, reason)
        self._alone = task, Randomness()
        return False

    def _let_go(self) -> bool:
        """Let go of the base that is kept, since a model is first built with one of its own; False where none is."""
        kept = self.cache.drop("base")
        self._pack = self._another_pack()
        torch.cuda.empty_cache()
        return kept

    def _apart(self, task: Task) -> str | None:
        """Why a trial that was built is not packed; None where it is."""
        return "slots: 1" if self._one_by_one else self._pack.refuses(task.attempt.recipe)

    def _join(self, task: Task) -> None:
        """Put a trial that was built into the pack."""
        self._packed[self._pack.put(task.attempt.recipe)] = task
        self._base = task.base

    @property
    def _one_by_one(self) -> bool:
        """Whether nothing is ever packed, so that torchtune's own modules train."""
        return self.slots == 1 and self._growth is None

    def _refused(self, task: Task) -> Outcome | None:
        """The outcome of a trial that could not train here even alone, found before anything of it is built."""
        frugal = any(task.spec.config.get(f"enable_activation_{how}") for how in ("checkpointing", "offloading"))
        if task.base != self._base or frugal:
            return None
        if (reason := self._pack.never_fits(*task.size)) is None:
            return None
        _log.warning("trial %d is refused: %s", task.spec.trial, reason)
        return Outcome(OutcomeKind.FAILED, reason, failure=FailureKind.OUT_OF_MEMORY)

    def _fits(self, task: Task) -> bool:
        """Whether one more is estimated to fit into memory beside those that run."""
        if (short := self._pack.short_of(*task.size)) is None:
            return True
        need, memory = short
        if self._crowded > len(self._packed):
            _log.info(
                "trial %d waits: with it a pass needs about %.3g GiB, and %.3g GiB are free",
                task.spec.trial,
                need / GIB,
                memory.free / GIB,
            )
        self._no_more()
        return False

    def _no_more(self) -> None:
        self._crowded = len(self._packed)
        self._choose(self._growth.full() if self._growth else None)

    # --- training -----------------------------------------------------------------------------------------------

    def _train_pack(self) -> None:
        began, before = time.perf_counter(), self._tokens()
        held = len(self._packed)
        results = self._pack.step()
        seconds = time.perf_counter() - began
        if self._growth is not None:
            self._choose(self._growth.add(held, self._tokens() - before, seconds))
        for passed in results:
            task = self._packed[passed.slot]
            if passed.batch is None:
                ended: Outcome | None = task.attempt.fail(passed.error or RuntimeError("no micro-batch"))
            else:
                ended = task.attempt.after(passed.batch)
            if ended is not None:
                del self._packed[passed.slot]
                self._pack.remove(passed.slot)
                self._crowded = MOST + 1
                self._end(task, ended)

    def _train_alone(self, task: Task, random: Randomness) -> None:
        if not random.resumed:
            random.resume()  # others may have drawn since it was built; from here on nobody else does
        ended = task.attempt.advance()
        if ended is not None:
            self._alone = None
            self._end(task, ended)

    def _tokens(self) -> int:
        return sum(slot.recipe.tokens for slot in self._packed)

    def _choose(self, sentence: str | None) -> None:
        if sentence is None or self._growth is None:
            return
        _log.info("slots: auto holds %s", sentence)
        self.slots = self._growth.slots
        if self.slots == 1:
            self._pack.budget = 1  # those that are here already take turns
        self.announce(self.slots)

    # --- ending -------------------------------------------------------------------------------------------------

    def _obey_stops(self) -> None:
        for task in list(self._waiting):
            if stop := task.attempt.should_stop():
                self._waiting.remove(task)
                task.end(Outcome(OutcomeKind.STOPPED, stop[1], cause=stop[0]))
        if self._alone is not None and self._packed:  # it was built, and waits for those to end
            task, _ = self._alone
            if (ended := task.attempt.obey()) is not None:
                self._alone = None
                task.end(ended)

    def _end(self, task: Task, outcome: Outcome) -> None:
        if outcome.failure is FailureKind.OUT_OF_MEMORY and not self._packed:
            self.cache.clear()
            self._pack = self._another_pack()
        task.end(outcome)

    def _another_pack(self) -> Pack:
        return Pack(self._pack.budget, self.memories)
