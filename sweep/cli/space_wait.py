"""Waits until a controller that found no space left may go on.

Invariant: nothing is changed while there is no space. The user ends the wait, and then the run has failed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sweep.cli.run_control import RunControl
from sweep.controller.disk import (
    FIRST_RETRY_SECONDS,
    LIMIT_SECONDS,
    MAX_RETRY_SECONDS,
    given_up_text,
    has_space,
    no_space_text,
)
from sweep.model.effects import Finish
from sweep.model.states import Finished, Mode
from trainer.room import Room

POLL_SECONDS = 0.1
# A controller that ran for this long before it found no space waits as if for the first time.
CALM_SECONDS = 60.0


@dataclass
class SpaceWait:
    """The waits of one run of a sweep.

    Args:
        _ended: when the last wait ended, on the monotonic clock.
        _began: when the first wait began after which no controller ran for `CALM_SECONDS`.
        _interrupted: the user has interrupted the run, and a controller was to end it in the space that there was.
    """

    room: Room
    control: RunControl
    _pause: float = FIRST_RETRY_SECONDS
    _ended: float = float("-inf")
    _began: float | None = None
    _interrupted: bool = False

    def where(self, error: Exception) -> str:
        """Where no space is left, for a person. It may be another disk than the room's, such as the storage's."""
        return no_space_text(self.room) if not has_space(self.room.root) else f"no space left ({error})"

    def wait(self, error: Exception) -> Finish | None:
        """Wait for a while that grows, and until there is space in the room.

        Returns:
            how the run ends if the user has interrupted it and it still finds no space, or if it was handed over; None:
            another controller may go on.
        """
        where = self.where(error)
        calm = time.monotonic() - self._ended > CALM_SECONDS
        self._pause = FIRST_RETRY_SECONDS if calm else min(2 * self._pause, MAX_RETRY_SECONDS)
        failed = Finish(Finished.FAILED, f"{where}; free some, then `sweep resume`")
        if self._interrupted:
            return failed
        self._began = time.monotonic() if self._began is None or calm else self._began
        while True:
            if time.monotonic() - self._began > LIMIT_SECONDS:
                return Finish(Finished.FAILED, given_up_text(where, LIMIT_SECONDS))
            mode = self._mode_after(self._pause)
            if mode is Mode.HANDOVER:
                return Finish(Finished.HANDED_OVER, "another controller goes on")
            if has_space(self.room.root):
                break
            if mode is not Mode.RUN:
                return failed
            self._pause = min(2 * self._pause, MAX_RETRY_SECONDS)
        self._ended, self._interrupted = time.monotonic(), mode is not Mode.RUN
        return None

    def _mode_after(self, seconds: float) -> Mode:
        """What the user wants after this many seconds, or as soon as that is not to go on."""
        deadline = time.monotonic() + seconds
        while (mode := self.control()) is Mode.RUN and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return mode
