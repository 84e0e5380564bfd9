"""What a person or a scheduler asks of a running controller: the mode, by signals and through the room.

Invariants: a mode only ever becomes stricter while a controller runs. The file `control` in the room holds the mode
that another process asked for; on a full disk, the name of an empty file `control.MODE` does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sweep.model.states import Mode
from trainer.room import OWN_FILE, Room, read_text, write_atomic
from trainer.space import is_no_space

# Modes that a person asks for.
REQUESTED = (Mode.DETACH, Mode.STOP, Mode.CANCEL)


@dataclass(slots=True)
class RunControl:
    """The mode of a controller; calling it gives the strictest one that was asked for.

    Args:
        interrupted: a Ctrl-C has arrived.
        in_job: the controller is a job itself, so that a signal means the end of the job and not of the sweep.
        handover_signal: the signal that ended the job; None: no signal has arrived.
        handover_at: when that signal arrived, in seconds on the monotonic clock.
        may_act: whether this controller may act at all; asked once, when the room is held and nothing has been done.
        started: whether `may_act` has been asked.
    """

    room: Room
    mode: Mode = Mode.RUN
    interrupted: bool = False
    in_job: bool = False
    handover_signal: int | None = None
    handover_at: float = 0.0
    may_act: Callable[[], bool] = lambda: True
    started: bool = False

    def __call__(self) -> Mode:
        if not self.started and not self.may_act():
            self.mode = Mode.HANDOVER
        self.started = True
        return _strictest(self.mode, requested_mode(self.room))

    def hand_over(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal of a job: leave everything as it is, for the next controller."""
        self.handover_signal = number
        self.handover_at = time.monotonic()
        self.mode = _strictest(self.mode, Mode.HANDOVER)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a Ctrl-C: the first detaches, the second stops the trials with a checkpoint."""
        self.interrupted = True
        self.mode = Mode.DETACH if self.mode is Mode.RUN else Mode.STOP


def control_path(room: Room) -> Path:
    """The file in which another process asks for a mode."""
    return room.root / "control"


def request_mode(room: Room, mode: Mode) -> None:
    """Ask a running controller for a mode. On a full disk an empty file says it, which takes no block.

    Raises:
        OSError: the room cannot be written to.
    """
    try:
        write_atomic(control_path(room), mode.value)
    except OSError as error:
        if not is_no_space(error):
            raise
        os.close(os.open(_empty_request(room, mode), os.O_WRONLY | os.O_CREAT | OWN_FILE, 0o666))


def requested_mode(room: Room) -> Mode:
    """The mode that another process asked for; `RUN` if none did."""
    text = (read_text(control_path(room)) or "").strip()
    asked = Mode(text) if text in list(Mode) else Mode.RUN
    return _strictest(asked, *(mode for mode in REQUESTED if _empty_request(room, mode).exists()))


def has_request(room: Room) -> bool:
    """Whether a mode was asked for, and no controller has removed the request."""
    return control_path(room).is_file() or any(_empty_request(room, mode).exists() for mode in REQUESTED)


def clear_request(room: Room) -> None:
    """Remove what was asked of a controller that has ended."""
    for path in (control_path(room), *(_empty_request(room, mode) for mode in REQUESTED)):
        with suppress(IsADirectoryError):  # damage, which asks for nothing
            path.unlink(missing_ok=True)


def _empty_request(room: Room, mode: Mode) -> Path:
    return room.root / f"control.{mode.value}"


def _strictest(*modes: Mode) -> Mode:
    return max(modes, key=list(Mode).index)


@contextmanager
def signals_handled(control: RunControl) -> Iterator[None]:
    """Let signals change the mode while the block runs."""
    if control.in_job:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGUSR2), control.hand_over)
    else:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), control.interrupt)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
