"""The controller of a sweep's evaluations, and how it runs together with the sweep's own controller.

An evaluation is a trial of a second, small sweep whose room is part of the first one's: `jobs` says how.

Invariants: an error in an evaluation never ends the sweep, and the sweep ends only after its evaluations. The study
determines which trials are evaluated, and the files of the evaluations' room which of them were, so a restarted
controller continues. Each trial is evaluated once. What ends a sweep interrupts its evaluations, and a later controller
continues them; an evaluation that a person stopped in W&B has ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.controller.loop import Controller, idle
from sweep.model.effects import Effect, Finish, Tell
from sweep.model.facts import StudyFacts, Verdict
from sweep.model.states import Ending, Finished, Mode
from trainer.contract import Report
from trainer.room import Damage, Room, json_object, read, usable, write_atomic
from trainer.space import is_no_space

ASKED_FILE = "asked"
ENDING_FILE = "told.json"


@dataclass
class EvaluationStudy:
    """A `Study` (see `ports`) whose trials are evaluations; an evaluation has the number of the trial that it judges.

    It proposes each trial that was the best when it ended, the newest first.

    Args:
        room: of the evaluations.
        winners: returns the numbers of those trials, the newest last.
    """

    room: Room
    winners: Callable[[], Sequence[int]]
    _asked: set[int] = field(default_factory=set)
    _endings: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in self.room.trials():
            folder = self.room.trial(number)
            if (folder / ASKED_FILE).exists():
                self._asked.add(number)
                if (ending := read_ending(self.room, number)) is not None:
                    self._endings[number] = ending.ending.value

    def ask(self) -> int:
        number = self._candidates()[-1]
        write_atomic(self.room.trial(number) / ASKED_FILE, "", root=self.room.root.parent)
        self._asked.add(number)
        return number

    def params(self, number: int) -> Mapping[str, Any]:
        return {}

    def record(
        self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True
    ) -> Verdict | None:
        return None

    def objective(self, number: int) -> float | None:
        return 0.0  # an evaluation has no reports: its scores come with its outcome

    def tell(self, result: Tell, tokens: int, seconds: float = 0.0) -> None:
        folder = self.room.trial(result.trial)
        if result.trial not in self._asked or result.trial in self._endings:
            return
        said = {"ending": result.ending.value, "reason": result.reason}
        write_atomic(folder / ENDING_FILE, json.dumps(said), root=self.room.root.parent)
        self._endings[result.trial] = result.ending.value

    def facts(self) -> StudyFacts:
        complete = sum(1 for ending in self._endings.values() if ending == Ending.COMPLETE)
        return StudyFacts(
            open=tuple(sorted(self._asked - set(self._endings))),
            complete=complete,
            failed=len(self._endings) - complete,
            exhausted=not self._candidates(),
        )

    def _candidates(self) -> list[int]:
        return [number for number in self.winners() if number not in self._asked]


@dataclass(frozen=True, slots=True)
class EvaluationEnding:
    """How an evaluation ended, and why."""

    ending: Ending
    reason: str


def read_ending(room: Room, number: int) -> EvaluationEnding | None:
    """How an evaluation ended; None if it has not ended, or its file is damaged: then it is told again.

    Args:
        room: of the evaluations.
        number: of the trial that is judged.
    """
    return usable(ending_of(room, number))


def ending_of(room: Room, number: int) -> EvaluationEnding | Damage | None:
    """How an evaluation ended, the damage of its file, or None if it has not ended; see `read_ending`."""
    return read(room.trial(number) / ENDING_FILE, _ending)


def _ending(text: str) -> EvaluationEnding:
    raw = json_object(text)
    return EvaluationEnding(Ending(raw["ending"]), str(raw["reason"]))


@dataclass
class EvaluationMode:
    """The mode of the evaluations' controller, which follows from what the user wants of the sweep.

    Args:
        requested: returns what the user wants of the sweep.
        may_start: whether evaluations may start; they may not while trials train on the GPUs that both need.
    """

    requested: Callable[[], Mode]
    may_start: bool = True

    def __call__(self) -> Mode:
        mode = self.requested()
        if mode is Mode.CANCEL:
            return Mode.STOP  # a cancelled evaluation would have ended for good, but its adapter is still worth judging
        return Mode.DETACH if mode is Mode.RUN and not self.may_start else mode


@dataclass
class CombinedController:
    """Runs the controller of a sweep's trials and that of its evaluations in turn, in one thread.

    Args:
        trials, evaluations: the two controllers.
        evaluation_mode: the mode of the second one.
        waits: evaluations start after the trials' workers have ended, because both need the same GPUs.
    """

    trials: Controller
    evaluations: Controller
    evaluation_mode: EvaluationMode
    waits: bool
    _last_error: str = ""
    _given_up: bool = False

    def run(self) -> Finish:
        """Run until neither controller has anything left to do or the user ends the run; returns how it ended.

        Raises:
            GiveUp, OSError: see `Controller.run`; from the trials' controller, or because no space is left.
        """
        while True:
            effects = self.trials.round()
            finish = _finish(effects)
            evaluation_effects, evaluations_finish = self.evaluation_round(trials_ended=finish is not None)
            if finish is not None and evaluations_finish is not None:
                return _joined(finish, evaluations_finish)
            if idle(effects) and idle(evaluation_effects):
                self.trials.ports.channel.wait(self.trials.ports.clock, self.trials.poll_seconds)

    def evaluation_round(self, trials_ended: bool) -> tuple[tuple[Effect, ...], Finish | None]:
        """One round of the evaluations' controller: its effects, and how its run ends, if it does.

        If it raises an error, it is given up, and the trials continue without it.
        """
        self.evaluation_mode.may_start = trials_ended or not self.waits
        effects: tuple[Effect, ...] = ()
        if not self._given_up:
            try:
                effects = self.evaluations.round()
            except Exception as error:  # no error of an evaluation may end the sweep
                if is_no_space(error):
                    raise  # no error of an evaluation: the whole sweep waits
                self._given_up = True
                self._report(f"{type(error).__name__}: {error}")
        if self._given_up:
            return (), Finish(Finished.FAILED, self._last_error)
        finish = _finish(effects)
        if finish is not None and finish.how is Finished.FAILED:
            self._report(finish.reason)
        return effects, finish

    def _report(self, error: str) -> None:
        """Tell the listener of an error once."""
        if error != self._last_error:
            self._last_error = error
            self.evaluations.listener.round_failed(f"{error}; `sweep resume` starts evaluations again")


def _finish(effects: tuple[Effect, ...]) -> Finish | None:
    last = effects[-1] if effects else None
    return last if isinstance(last, Finish) else None


def _joined(trials: Finish, evaluations: Finish) -> Finish:
    """How both ended: open evaluations count if the user has ended the run, failed ones do not."""
    if trials.how is Finished.DONE and evaluations.how in (Finished.STOPPED, Finished.DETACHED):
        return Finish(evaluations.how, "the trials have ended, their evaluations go on with `sweep resume`")
    return trials
