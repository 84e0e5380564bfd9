"""Runs a controller in this process: holds the room, shows the live view or logs lines, and obeys Ctrl-C.

Invariants: the room's lock is held for as long as the controller acts. A first Ctrl-C detaches, a second stops the
trials with a checkpoint; neither loses anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING

from sweep.cli.line_log import EvaluationLog, LineLog
from sweep.cli.live_view import shown
from sweep.cli.run_control import RunControl, clear_request, signals_handled
from sweep.cli.space_wait import SpaceWait
from sweep.controller.disk import Notice
from sweep.errors import GiveUp, RetryLater
from sweep.model.effects import Finish
from sweep.model.states import Finished, Mode
from sweep.report.metric_notes import scored_names
from sweep.report.terminal import console
from sweep.wiring.rooms import controller_lock, controller_whereabouts, load_settings, presence_check, whereabouts
from sweep.wiring.session import OpenSweep, make_controller, open_world, with_evaluations
from trainer.room import Room, hold, remove_stale_scratch
from trainer.space import is_no_space

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.controller.ports import Channel
    from sweep.processes import PreforkServer
    from sweep.search.study import OptunaStudy

# How long a detaching controller waits for a second Ctrl-C.
SECOND_INTERRUPT_SECONDS = 3.0
logger = logging.getLogger(__name__)


def drive(
    room: Room,
    control: RunControl,
    prefork: PreforkServer,
    continues: bool = False,
    lock: IO[str] | None = None,
) -> Finish:
    """Run the controller of a room until it ends.

    Args:
        prefork: forks the workers; closed at the end.
        continues: an earlier controller handed over, so that the mode that was asked of it still holds.
        lock: the room's lock if this process holds it; released at the end.

    Raises:
        RetryLater: another controller runs this sweep.
        GiveUp: the room was deleted or replaced by another sweep's, or cannot be written to for another reason than a
            full disk, which is waited for.
    """
    settings = load_settings(room)
    with _held(room, lock) as is_held:
        if not is_held:
            raise RetryLater(
                f"another controller runs {settings.name} already ({controller_whereabouts(room)}); "
                f"look at it with `sweep watch {settings.name}`, "
                f"or end it with `sweep stop {settings.name}`"
            )
        settings = load_settings(room)  # again: nobody else changes them from here on
        check = presence_check(room, settings)
        remove_stale_scratch(room.root)
        try:
            if not continues and not control.in_job:
                # A request to an earlier controller is void. It is removed at once, since from here on a person may
                # ask something of this one; the sync with a store does the same with the request there.
                clear_request(room)
            with closing(prefork):
                return _run(room, settings, prefork, control)
        except OSError as error:
            check()  # perhaps the room is gone, which is another sentence
            raise GiveUp(
                f"the controller cannot write to {room.root}: {error}; repair that, then `sweep resume`"
            ) from error


@contextmanager
def _held(room: Room, lock: IO[str] | None) -> Iterator[bool]:
    """Hold the controller's lock of a room while the block runs; False if another process holds it."""
    if lock is None:
        with hold(controller_lock(room), whereabouts()) as is_held:
            yield is_held
        return
    try:
        yield True
    finally:
        lock.close()


def second_interrupt(control: RunControl) -> bool:
    """After a Ctrl-C has detached, wait a moment for another; True if it came, to stop the trials."""
    if control.mode is not Mode.DETACH or not control.interrupted:
        return False
    logger.info("detaching in %g s; Ctrl-C again stops the running trials with a checkpoint", SECOND_INTERRUPT_SECONDS)
    deadline = time.monotonic() + SECOND_INTERRUPT_SECONDS
    while time.monotonic() < deadline and control.mode is Mode.DETACH:
        time.sleep(0.05)
    return control.mode is not Mode.DETACH


def _run(room: Room, settings: Settings, prefork: PreforkServer, control: RunControl) -> Finish:
    """Run controllers until one ends; one that found no space left is followed by another when there is space.

    A write that failed may have left the study's memory and its storage different. A new controller reads everything
    again, as after a crash.
    """
    waits, notice = SpaceWait(room, control), Notice(room)
    finish: Finish | None = None
    while finish is None:
        try:
            with open_world(room, settings, prefork) as opened:
                finish = _run_controller(room, settings, opened, prefork, (control, notice, waits))
                if finish is not None and finish.how is not Finished.HANDED_OVER:
                    _clear_requests(room, opened.ports.channel)
        except Exception as error:  # while everything is opened or closed
            if not is_no_space(error) or finish is not None:
                raise
            logger.warning("%s; the sweep waits", waits.where(error))
            with signals_handled(control):
                finish = waits.wait(error)
            if finish is not None:
                clear_request(room)
    notice.say("")
    return finish


def _run_controller(
    room: Room,
    settings: Settings,
    opened: OpenSweep,
    prefork: PreforkServer,
    parts: tuple[RunControl, Notice, SpaceWait],
) -> Finish | None:
    """Run one controller; None if it found no space left and another one may go on."""
    control, notice, waits = parts
    log = LineLog(opened.study, settings.objectives[0], scored_names(settings.measured), on_wait=notice.say)
    search = make_controller(room, settings, opened, log, control)
    both = with_evaluations(search, room, settings, (opened.study, prefork), EvaluationLog(log, room))
    with _publishing(room, settings, log), signals_handled(control), _live(log, room, opened.study), both as controller:
        finish: Finish | None
        try:
            finish = controller.run()
            if finish.how is Finished.DETACHED and second_interrupt(control):
                finish = controller.run()
        except Exception as error:
            if not is_no_space(error):
                raise
            log.wait_for_space(waits.where(error))
            log.on_event()
            finish = waits.wait(error)
            if finish is None:
                log.wait_for_space("")
    return finish


def _clear_requests(room: Room, channel: Channel) -> None:
    """Remove what was asked of a controller that has ended."""
    from sweep.store.channel import StoreChannel

    clear_request(room)
    if isinstance(channel, StoreChannel):
        channel.sync.clear_control()


@contextmanager
def _publishing(room: Room, settings: Settings, log: LineLog) -> Iterator[None]:
    """Report to W&B how trials end and which adapter is best, while the block runs."""
    from sweep.tracking.runs import mode

    if mode(settings) != "online":
        yield
        return
    from sweep.report.reader import open_reader
    from sweep.tracking.sync import Publisher

    publisher = Publisher(settings, room, lambda: open_reader(room).state(), logger.warning)
    publisher.start()
    log.on_tell = publisher.changed
    try:
        yield
    finally:
        publisher.close()


@contextmanager
def _live(log: LineLog, room: Room, study: OptunaStudy) -> Iterator[None]:
    """Show the live view while the block runs, if this is a terminal."""
    out = console()
    if not out.is_terminal:
        yield
        return
    with shown(out, room, study) as view:
        log.log_reports = False
        log.on_event = view.refresh
        yield
