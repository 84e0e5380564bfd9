"""Runs a controller in front of a person: live view or line log, Ctrl-C, and the word at the end.

Invariants: the room's lock is held for as long as the controller acts. A first Ctrl-C detaches, a second stops
the trials with a checkpoint; neither loses anything.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sweep.errors import GiveUp, RetryLater
from sweep.model import (
    Assign,
    Cancel,
    Effect,
    Ending,
    Finish,
    Finished,
    JobState,
    Mode,
    StartWorkers,
    Stop,
    Tell,
    View,
)
from sweep.report.terminal import console, duration, live_view, number, params_text, scores_text, waiting_text
from sweep.wiring.backends import job_viewer
from sweep.wiring.rooms import controller_lock, controller_whereabouts, load_settings, whereabouts
from sweep.wiring.session import OpenSweep, make_controller, open_world, with_evaluations
from trainer.contract import Report
from trainer.room import Room, hold, read_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from sweep.config.settings import Settings
    from sweep.controller.ports import Channel
    from sweep.processes import PreforkServer
    from sweep.report.reader import SweepReader
    from sweep.search.strategy.protocol import Promotion
    from sweep.search.study import OptunaStudy

REFRESH_SECONDS = 0.5
SECOND_THOUGHTS_SECONDS = 3.0


@dataclass(slots=True)
class Wish:
    """What the person wants: from Ctrl-C, or from the verb `stop` of another process through the room.

    Args:
        in_job: the controller is a job itself, so that a signal means its own end and not the sweep's.
        resigned: the signal that told it so, and when, on the monotonic clock.
        wanted: asked once the room is held, before anything is done: whether this controller is to act at all.
    """

    room: Room
    mode: Mode = Mode.RUN
    interrupted: bool = False
    in_job: bool = False
    resigned: int | None = None
    resigned_at: float = 0.0
    wanted: Callable[[], bool] = lambda: True
    begun: bool = False

    def __call__(self) -> Mode:
        if not self.begun and not self.wanted():
            self.mode = Mode.HANDOVER
        self.begun = True
        text = read_text(control_path(self.room))
        asked = Mode(text.strip()) if text and text.strip() in list(Mode) else Mode.RUN
        order = list(Mode)
        return max(self.mode, asked, key=order.index)

    def hand_over(self, number: int, frame: FrameType | None) -> None:
        """Leave all as it is: this process must end, and another controller goes on."""
        self.resigned = number
        self.resigned_at = time.monotonic()
        self.mode = max(self.mode, Mode.HANDOVER, key=list(Mode).index)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.mode = Mode.DETACH if self.mode is Mode.RUN else Mode.STOP


@dataclass
class Log:
    """Turns what the controller does into lines: to standard output, or into the live view."""

    study: OptunaStudy
    metric: str
    echo: Console | None
    began: float = field(default_factory=time.time)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    view: LiveView | None = None
    waiting: str = ""
    cancelled: set[str] = field(default_factory=set)
    told: Callable[[], None] = lambda: None

    def reported(self, trial: int, report: Report) -> None:
        value = getattr(report, self.metric)
        if not self.view:
            text = (
                f"trial {trial} milestone {report.milestone}: {self.metric} {number(value)} loss {number(report.loss)} "
            )
            self.say(text + f"grad_norm {number(report.grad_norm, 3)}")

    def done(self, effect: Effect) -> None:
        match effect:
            case StartWorkers(places):
                self.say(f"starting {len(places)} worker{'s' if len(places) > 1 else ''}")
            case Assign(trial, attempt, worker):
                again = f" again (attempt {attempt})" if attempt > 1 else ""
                self.say(f"trial {trial} starts{again} on {worker}: {params_text(self.study.params(trial))}")
            case Stop(trial, _, cause, reason):
                self.say(f"trial {trial} shall stop ({cause}): {reason}")
            case Tell(trial, ending, reason):
                self.say(f"trial {trial} {ending.value}{self._value(trial)}{': ' if reason else ''}{reason}")
                self.told()
            case Cancel(worker, reason) if worker not in self.cancelled:  # repeated until the queue has obeyed
                self.cancelled.add(worker)
                self.say(f"worker {worker} is ended: {reason}")
        if self.view:
            self.view.refresh(self)

    def waited(self, view: View) -> None:
        live = [worker for worker in view.workers if worker.job is not JobState.GONE]
        waiting = waiting_text(live)
        if waiting and waiting != self.waiting:
            self.say(waiting)
        self.waiting = waiting
        if self.view:
            self.view.refresh(self)

    def promoted(self, promotion: Promotion) -> None:
        self.say(f"trial {promotion.trial} is promoted: {promotion.reason}")

    def trouble(self, message: str) -> None:
        self.say(f"trouble, trying again: {message}")

    def _value(self, trial: int) -> str:
        facts = self.study.facts()
        return f" {self.metric} {number(facts.best)} (best so far)" if facts.best_trial == trial else ""

    def say(self, text: str) -> None:
        """Add a line."""
        line = f"[{duration(time.time() - self.began)}] {text}"
        self.lines.append(line)
        if self.view:
            self.view.refresh(self, now=True)
        if self.echo is not None:
            self.echo.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class EvaluationLog:
    """Turns what the evaluations' controller does into lines of the same log."""

    log: Log
    room: Room

    def reported(self, trial: int, report: Report) -> None:
        pass  # an evaluation says nothing before its end

    def done(self, effect: Effect) -> None:
        from sweep.report.reader import read_evaluation

        match effect:
            case Assign(trial, attempt, worker):
                again = f" again (attempt {attempt})" if attempt > 1 else ""
                self.log.say(f"evaluation of trial {trial} starts{again} on evaluations/{worker}")
            case Stop(trial, _, cause, reason):
                self.log.say(f"evaluation of trial {trial} shall stop ({cause}): {reason}")
            case Tell(trial, Ending.COMPLETE):
                self.log.say(f"evaluation of trial {trial}: {scores_text(read_evaluation(self.room, trial).scores)}")
            case Tell(trial, _, reason):
                self.log.say(f"evaluation of trial {trial} failed: {reason}")
            case Cancel(worker, reason) if f"evaluations/{worker}" not in self.log.cancelled:
                self.log.cancelled.add(f"evaluations/{worker}")
                self.log.say(f"worker evaluations/{worker} is ended: {reason}")

    def waited(self, view: View) -> None:
        pass

    def promoted(self, promotion: Promotion) -> None:
        pass  # an evaluation is never paused

    def trouble(self, message: str) -> None:
        self.log.say(f"evaluations: {message}")


@dataclass
class LiveView:
    """Redraws the live view, twice a second at most."""

    live: Live
    reader: SweepReader
    _drawn: float = 0.0

    def refresh(self, log: Log, now: bool = False) -> None:
        moment = time.monotonic()
        if now or moment - self._drawn >= REFRESH_SECONDS:
            self._drawn = moment
            self.live.update(live_view(self.reader.state(), list(log.lines), self.live.console.height), refresh=True)


def control_path(room: Room) -> Path:
    """Where another process writes what it wants of the controller: a word of `Mode`."""
    return room.root / "control"


def drive(room: Room, wish: Wish, prefork: PreforkServer, goes_on: bool = False) -> Finish:
    """Run the controller of a room until it ends.

    Args:
        prefork: forks the workers; closed at the end.
        goes_on: an earlier controller handed over, so that what a person wanted of it holds.

    Raises:
        RetryLater: another controller runs this sweep. GiveUp: the disk is full.
    """
    settings = load_settings(room)
    with hold(controller_lock(room), whereabouts()) as mine:
        if not mine:
            raise RetryLater(
                f"another controller runs {settings.name} already ({controller_whereabouts(room)}); "
                f"look at it with `sweep watch {settings.name}`, "
                f"or end it with `sweep stop {settings.name}`"
            )
        try:
            if not goes_on and not wish.in_job:
                # what was wanted of an earlier controller; at once, since from here on a person may want something of
                # this one. A mirror does the same with what the store says.
                control_path(room).unlink(missing_ok=True)
            with closing(prefork), open_world(room, settings, prefork) as opened:
                finish = _control(room, settings, opened, prefork, wish)
                if finish.how is not Finished.HANDED_OVER:
                    _forget_wish(room, opened.ports.channel)
        except OSError as error:
            raise GiveUp(
                f"the controller cannot write to {room.root}: {error}; mend that, then `sweep resume`"
            ) from error
        return finish


def _forget_wish(room: Room, channel: Channel) -> None:
    """What a person wanted of a controller that has ended holds no more."""
    from sweep.store.channel import StoreChannel

    control_path(room).unlink(missing_ok=True)
    if isinstance(channel, StoreChannel):
        channel.sync.clear_control()


def _control(room: Room, settings: Settings, opened: OpenSweep, prefork: PreforkServer, wish: Wish) -> Finish:
    out = console()
    log = Log(opened.study, settings.metric, echo=None if out.is_terminal else out)
    main = make_controller(room, settings, opened, log, wish)
    judging = with_evaluations(main, room, settings, (opened.study, prefork), EvaluationLog(log, room))
    with _publishing(room, settings, log), _signals(wish), _live(out, log, room, opened.study), judging as controller:
        finish = controller.run()
        if finish.how is Finished.DETACHED and second_thoughts(wish, log):
            finish = controller.run()
    return finish


def second_thoughts(wish: Wish, log: Log) -> bool:
    """After a Ctrl-C has detached: wait a moment for another, which stops the trials; True where it came."""
    if wish.mode is not Mode.DETACH or not wish.interrupted:
        return False
    log.say(f"detaching in {SECOND_THOUGHTS_SECONDS:g} s; Ctrl-C again stops the running trials with a checkpoint")
    deadline = time.monotonic() + SECOND_THOUGHTS_SECONDS
    while time.monotonic() < deadline and wish.mode is Mode.DETACH:
        time.sleep(0.05)
    return wish.mode is not Mode.DETACH


@contextmanager
def _signals(wish: Wish) -> Iterator[None]:
    if wish.in_job:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGUSR2), wish.hand_over)
    else:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), wish.interrupt)
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _publishing(room: Room, settings: Settings, log: Log) -> Iterator[None]:
    """While the block runs, W&B hears how trials end and which adapter is best."""
    from sweep.tracking.runs import mode

    if mode(settings) != "online":
        yield
        return
    from sweep.report.reader import open_reader
    from sweep.tracking.sync import Publisher

    publisher = Publisher(settings, room, lambda: open_reader(room).state(), log.say)
    publisher.start()
    log.told = publisher.changed
    try:
        yield
    finally:
        publisher.close()


@contextmanager
def _live(out: Console, log: Log, room: Room, study: OptunaStudy) -> Iterator[None]:
    if not out.is_terminal:
        yield
        return
    from rich.live import Live

    from sweep.report.reader import SweepReader

    settings = load_settings(room)
    reader = SweepReader(room, settings, study.frozen, job_viewer(room, settings))
    with Live(console=out, auto_refresh=False, transient=True) as live:
        log.view = LiveView(live, reader)
        yield


EXIT_CODES = {
    Finished.DONE: 0,
    Finished.DETACHED: 130,
    Finished.HANDED_OVER: 0,
    Finished.STOPPED: 130,
    Finished.CANCELLED: 130,
    Finished.FAILED: 1,
}
