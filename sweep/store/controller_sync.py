"""The controller's copy of a room that its workers reach only through an object store.

Invariants: everything that the controller has written is put before anything is read, so the controller never acts on a
fact that follows from a file that no worker can see. `room_push` says in which order files are put, and `room_pull`
what of the workers' files is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

from sweep.errors import ConfigError
from sweep.store.download import is_other_sweep, stored_sweep
from sweep.store.keys import SWEEP, file_contents
from sweep.store.room_pull import RoomPull
from sweep.store.room_push import RoomPush
from trainer.clock import boot_seconds
from trainer.room import Room, write_atomic
from trainer.store.layout import CONTROL, Owner, is_room_file, join, owner
from trainer.store.objects import ObjectStore


@dataclass
class ControllerSync:
    """Copies files between the controller's room and the store.

    Args:
        room: on this machine; only this process writes there.
        now: the local clock in seconds, time of suspension included.
    """

    store: ObjectStore
    room: Room
    now: InitVar[Callable[[], float]] = boot_seconds
    _push: RoomPush = field(init=False)
    _pull: RoomPull = field(init=False)

    def __post_init__(self, now: Callable[[], float]) -> None:
        self._push = RoomPush(self.store, self.room, now)
        self._pull = RoomPull(self.store, self.room)

    def start(self, continued: bool) -> None:
        """Make room and store agree before the controller observes for the first time.

        Args:
            continued: no other controller has acted since the last one on this machine. Then local files that were
                not put yet count; otherwise the store's do, and local files that differ are replaced.

        Raises:
            ConfigError: the store holds another sweep, or there is no sweep at all.
            StoreError: the store does not answer.
        """
        listing = self.store.list()
        if not continued and SWEEP in listing:
            self._check_same_sweep()
            self._replace_local_files(listing)
        elif SWEEP not in listing and not self.room.sweep.exists():
            raise ConfigError("there is no sweep, neither in the local room nor in the store")
        if not (self.room.root / CONTROL).exists():
            self.clear_control()
        self._push.note_stored_files(listing)
        self.push(self.room.trials())

    def push(self, trials: Sequence[int], lazily: bool = False) -> None:
        """Put what the controller has written: for the sweep, for all workers and for these trials.

        Args:
            lazily: put the study's journal once a minute only. A controller that continues without its last lines
                finds the same in reports and outcomes, as long as the journal is put before a specification.

        Raises:
            StoreError: the store does not answer; the next call continues.
        """
        self._push.push(trials, lazily)

    def pull(
        self, trials: Sequence[int], workers: Sequence[str] = (), most: Callable[[], float] = lambda: math.inf
    ) -> None:
        """Read what these workers have put, for themselves and for these trials, and write it into the room.

        Args:
            most: called after the listing; returns how many trials' reports may be read. The others are first in turn
                in the next call. Reports that come with an outcome are always read.

        Raises:
            StoreError: the store does not answer.
        """
        self._pull.pull(trials, workers, most)

    @property
    def unread(self) -> int:
        """For how many trials the last pull left new reports unread."""
        return self._pull.unread

    def renew_beats(self) -> None:
        """Let the next pull show all beats as new."""
        self._pull.beat_epoch += 1

    def before_fence(self, trial: int, number: int) -> None:
        """Copy an attempt's checkpoint for the next attempt; call this before the attempt is fenced off.

        The checkpoint is copied before the reports are read for the last time, so every milestone in it has a report
        that counts. Whatever the worker puts afterwards, neither its checkpoint nor its later reports are read.

        Raises:
            StoreError: the store does not answer; the call may be repeated as long as no fence was put.
        """
        files = self.room.attempt(trial, number)
        checkpoint, fenced = (path.relative_to(self.room.root).as_posix() for path in (files.checkpoint, files.fenced))
        self.store.copy(checkpoint, fenced)
        self.pull([trial])

    def clear_control(self) -> None:
        """Delete the mode that a user requested of an earlier controller.

        Raises:
            StoreError: the store does not answer.
        """
        self.store.delete(CONTROL)
        self._pull.forget(CONTROL)
        (self.room.root / CONTROL).unlink(missing_ok=True)

    def _check_same_sweep(self) -> None:
        stored = stored_sweep(self.store.get([SWEEP])[SWEEP])
        if is_other_sweep(self.room, stored):
            raise ConfigError(
                f"the store holds a sweep {stored.get('name')} already, which is not the one in {self.room.root}; "
                "give this one another URL, or continue that one with `sweep resume`"
            )

    def _replace_local_files(self, listing: Mapping[str, str]) -> None:
        """Make the controller's files in the local room those of the store."""
        files = join(self.store.get([k for k in listing if is_room_file(k) and owner(k) is Owner.CONTROLLER]))
        for path in sorted(self.room.root.rglob("*")):
            key = path.relative_to(self.room.root).as_posix()
            if "/" in key and path.is_file() and owner(key) is Owner.CONTROLLER and key not in files:
                path.unlink()
        for key, data in file_contents(files).items():
            write_atomic(self.room.root / key, data, root=self.room.root)
