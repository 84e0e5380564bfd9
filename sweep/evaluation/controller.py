"""Evaluations beside the trials: a second controller over a room in the room, stepped in turn with the sweep's own.

Invariants: what fails here never ends the sweep; the sweep ends only once what is wanted here has ended. Which trials
are judged follows from the sweep's study, which of them have been from this room's files, so that a restarted
controller goes on. There is one evaluation a trial. What ends a sweep only interrupts its evaluations, which a later
controller goes on with; one that a person stopped in W&B has ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.controller.loop import Controller, idle
from sweep.model import Effect, Ending, Finish, Finished, Mode, StudyFacts, Tell, Verdict
from trainer.contract import Report
from trainer.room import Room, read_json, write_atomic

ASKED = "asked"
TOLD = "told.json"


@dataclass
class EvaluationStudy:
    """A `Study` (see `ports`) that proposes each trial that was the best when it ended, the newest first.

    Args:
        room: of the evaluations.
        winners: those trials' numbers, the newest last.
    """

    room: Room
    winners: Callable[[], Sequence[int]]
    _asked: set[int] = field(default_factory=set)
    _told: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in self.room.trials():
            folder = self.room.trial(number)
            if (folder / ASKED).exists():
                self._asked.add(number)
                if (how := told(self.room, number)) is not None:
                    self._told[number] = how["ending"]

    def ask(self) -> int:
        number = self._candidates()[-1]
        write_atomic(self.room.trial(number) / ASKED, "")
        self._asked.add(number)
        return number

    def params(self, number: int) -> Mapping[str, Any]:
        return {}

    def record(
        self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True
    ) -> Verdict | None:
        return None

    def tell(self, result: Tell, tokens: int, seconds: float = 0.0) -> None:
        folder = self.room.trial(result.trial)
        if result.trial not in self._asked or result.trial in self._told:
            return
        write_atomic(folder / TOLD, json.dumps({"ending": result.ending.value, "reason": result.reason}))
        self._told[result.trial] = result.ending.value

    def facts(self) -> StudyFacts:
        complete = sum(1 for ending in self._told.values() if ending == Ending.COMPLETE)
        return StudyFacts(
            open=tuple(sorted(self._asked - set(self._told))),
            complete=complete,
            failed=len(self._told) - complete,
            exhausted=not self._candidates(),
        )

    def _candidates(self) -> list[int]:
        return [number for number in self.winners() if number not in self._asked]


def told(room: Room, number: int) -> dict[str, str] | None:
    """How an evaluation ended for good: `ending` and `reason`; None while it has not."""
    raw = read_json(room.trial(number) / TOLD)
    return raw if isinstance(raw, dict) else None


@dataclass
class Gate:
    """What the evaluations' controller is told that the person wants.

    Args:
        open: else nothing more is begun, since the trials need the place.
    """

    wish: Callable[[], Mode]
    open: bool = True

    def __call__(self) -> Mode:
        wished = self.wish()
        if wished is Mode.CANCEL:
            return Mode.STOP  # what is cancelled has ended for good; an adapter stays worth judging
        return Mode.DETACH if wished is Mode.RUN and not self.open else wished


@dataclass
class Together:
    """The sweep's controller and that of its evaluations, in turn.

    Args:
        gate: the evaluations' mode.
        waits: evaluations begin once the trials' workers have ended, since both need the same GPUs.
    """

    main: Controller
    evaluations: Controller
    gate: Gate
    waits: bool
    _said: str = ""
    _given_up: bool = False

    def run(self) -> Finish:
        """Go on until neither has anything left to do, or the person wants it to end."""
        while True:
            effects = self.main.round()
            finish = _finish(effects)
            beside, ended = self._turn(finish is not None)
            if finish is not None and ended is not None:
                return _joined(finish, ended)
            if idle(effects) and idle(beside):
                self.main.ports.channel.wait(self.main.ports.clock, self.main.poll_seconds)

    def _turn(self, trials_ended: bool) -> tuple[tuple[Effect, ...], Finish | None]:
        self.gate.open = trials_ended or not self.waits
        effects: tuple[Effect, ...] = ()
        if not self._given_up:
            try:
                effects = self.evaluations.round()
            except Exception as error:  # whatever it is, the trials go on
                self._given_up = True
                self._say(f"{type(error).__name__}: {error}")
        if self._given_up:
            return (), Finish(Finished.FAILED, self._said)
        finish = _finish(effects)
        if finish is not None and finish.how is Finished.FAILED:
            self._say(finish.reason)
        return effects, finish

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.evaluations.listener.trouble(f"{text}; `sweep resume` begins evaluations again")


def _finish(effects: tuple[Effect, ...]) -> Finish | None:
    last = effects[-1] if effects else None
    return last if isinstance(last, Finish) else None


def _joined(trials: Finish, evaluations: Finish) -> Finish:
    """How both ended: what a person's wish left open in the evaluations counts, what failed there does not."""
    if trials.how is Finished.DONE and evaluations.how in (Finished.STOPPED, Finished.DETACHED):
        return Finish(evaluations.how, "the trials have ended, their evaluations go on with `sweep resume`")
    return trials
