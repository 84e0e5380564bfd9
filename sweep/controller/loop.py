"""Observe, decide, act: the controller of one sweep.

Invariants: exactly one controller holds a room's lock. It stores nothing: what it keeps between rounds can be observed
again, except for times that only delay a decision (see `observer`), so it may die at any moment. Each effect is one
call of a port, and each of these calls is safe to repeat.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from sweep.controller.decide import decide
from sweep.controller.ledger import NoLedger
from sweep.controller.observer import Observer
from sweep.controller.ports import Ledger, Listener, Ports, WorkerSpec
from sweep.controller.trial_observer import reusable_worker
from sweep.errors import RetryLater
from sweep.model.effects import Ask, AskFinal, Assign, Cancel, Drain, Effect, Finish, Send, StartWorkers, Stop, Tell
from sweep.model.limits import Limits
from sweep.model.states import Mode
from trainer.contract import TrialSpec

# Errors of a shared file system or a network that may be gone at the next call.
TRANSIENT_ERRNOS = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO}

# After these effects there is nothing new to observe at once: it takes a worker or a queue some time to react.
SLOW_EFFECTS = (Assign, Cancel, Drain, Stop, Finish)

# Builds the specification of an attempt from trial, attempt and worker.
SpecFactory = Callable[[int, int, str], TrialSpec]


@dataclass
class Controller:
    """The controller of one sweep.

    Args:
        spec: builds the specification of an attempt.
        mode: returns what the user wants now; called once in each round.
        created: when the sweep was created, on the clock of the ports.
        poll_seconds: the longest time between two observations.
        check: called before each observation and each effect; raises if this controller may not act (any more).
    """

    ports: Ports
    limits: Limits
    spec: SpecFactory
    listener: Listener
    mode: Callable[[], Mode]
    created: float
    poll_seconds: float = 0.1
    ledger: Ledger = field(default_factory=NoLedger)
    check: Callable[[], None] = lambda: None
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Observer(self.ports, self.limits, self.mode, self.created, self.listener, self.ledger)

    def run(self) -> Finish:
        """Repeat rounds until nothing is left to do or the user ends the run; returns how it ended.

        Raises:
            GiveUp, OSError: an error that another round cannot solve.
        """
        while True:
            effects = self.round()
            if effects and isinstance(effects[-1], Finish):
                return effects[-1]
            if idle(effects):
                self.ports.channel.wait(self.ports.clock, self.poll_seconds)

    def round(self) -> tuple[Effect, ...]:
        """One step; if a port cannot answer now, the listener is told and no effects are returned."""
        try:
            return self.step()
        except (RetryLater, OSError) as error:
            if isinstance(error, OSError) and error.errno not in TRANSIENT_ERRNOS:
                raise
            self.listener.round_failed(str(error))
            return ()

    def step(self) -> tuple[Effect, ...]:
        """Observe, decide and act once; returns the effects that were decided on.

        Raises:
            RetryLater, OSError: a port cannot answer now; the next step observes anew.
        """
        self.check()
        view = self.observer.observe()
        effects = decide(view, self.limits, self.observer.observed_at or 0.0)
        for effect in effects:
            self.check()
            if self._act(effect):
                self.listener.done(effect)
        if not effects:
            self.listener.waited(view)
        return effects

    def _act(self, effect: Effect) -> bool:
        """Carry out an effect; False if there was nothing to do after all."""
        ports, observer = self.ports, self.observer
        match effect:
            case StartWorkers(places):
                names = observer.new_worker_names(len(places))
                ports.dispatcher.start([WorkerSpec(n, place) for n, place in zip(names, places, strict=True)])
            case Ask(new_allowed, worker):
                return self._ask(new_allowed, worker)
            case AskFinal():
                assert ports.finals is not None, "a study that announces finals implements FinalsStudy"
                ports.finals.ask_final()
            case Assign(trial, attempt, worker):
                ports.channel.assign(self.spec(trial, attempt, worker))
            case Send(worker):
                ports.dispatcher.start([WorkerSpec(worker, observer.place_of(worker))])
            case Stop(trial, attempt, cause, reason):
                observer.trials.stop_sent(trial, attempt)
                ports.channel.stop(trial, attempt, cause, reason)
            case Cancel(worker):
                ports.dispatcher.cancel([worker])
            case Tell(trial):
                observer.trials.forget(trial)
                ports.study.tell(effect, *observer.trials.usage.remove(trial))
                observer.trials.end(trial)
                ports.channel.forget(trial)
            case Drain(worker):
                ports.channel.drain(worker)
            case Finish():
                pass
        return True

    def _ask(self, new_allowed: bool, worker: str) -> bool:
        """Promote a paused trial or ask for a new one; False if none is to be promoted and no new one is allowed."""
        study, pausing = self.ports.study, self.ports.pausing
        promotion = pausing.promote(new_allowed, reusable_worker(worker, self.limits)) if pausing else None
        if promotion is not None:
            self.observer.trials.forget(promotion.trial)
            self.ledger.add_promotion(promotion)
            self.listener.promoted(promotion)
            return True
        if new_allowed:
            study.ask()
        return new_allowed


def idle(effects: tuple[Effect, ...]) -> bool:
    """Whether the controller may wait before it observes again."""
    return all(isinstance(effect, SLOW_EFFECTS) for effect in effects)
