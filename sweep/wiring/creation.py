"""Creates the room of a new sweep: frozen settings, study and warm start.

Invariants: the making of the directory claims a name that was not given, and the controller's lock claims every room.
Nothing is written into a room before its lock is held and it is seen to hold no sweep. `sweep.json` is written last, so
that a room that has it is complete. A creation that fails leaves nothing behind that it made itself.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from sweep.config.settings import Settings
from sweep.errors import ConfigError, RetryLater
from sweep.wiring.access import group_id, make_room_directory
from sweep.wiring.backends import backend_of
from sweep.wiring.rooms import (
    check_same_sweep,
    controller_lock,
    find_room,
    journal_path,
    load_settings,
    numbered_names,
    rooms_dir,
    save_settings,
    whereabouts,
)
from sweep.wiring.session import CREATION_NOTE, open_study, reading_storage
from trainer.room import Room, take_lock, write_atomic, write_lock

if TYPE_CHECKING:
    import optuna

    from sweep.wiring.compose import Composed

# How long a process waits for another one that is creating the same sweep.
CREATION_SECONDS = 120.0
POLL_SECONDS = 0.05


@dataclass
class OpenRoom:
    """A room, and the controller's lock of it if this process holds that.

    Args:
        lock: the open file; None: another process created the room, and this one holds nothing.
    """

    room: Room
    lock: IO[str] | None

    def release(self) -> None:
        """Let another process control the sweep."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def create_room(composed: Composed, trial_tokens: int) -> Room:
    """`create_held_room`, without its lock.

    Raises:
        ConfigError, RetryLater: see there; also a ConfigError if the sweep exists.
    """
    opened = create_held_room(composed, trial_tokens)
    if opened.lock is None:
        raise ConfigError(f"there is a sweep {composed.settings.name} already; choose another name")
    opened.release()
    return opened.room


def create_held_room(composed: Composed, trial_tokens: int, stem: str | None = None) -> OpenRoom:
    """A new room with frozen settings, its study and its warm start; the caller holds its lock.

    If another process creates a sweep of this name first, with the same settings, its room without a lock.

    Args:
        trial_tokens: label tokens of a whole trial.
        stem: take the first free name of `stem-1`, `stem-2`, …; None: the settings' own name.

    Raises:
        ConfigError: another sweep has this name, a warm start does not fit, the storage holds a study of this name, the
            group of the room is none of the user's, or the queue's service refuses.
        RetryLater: the queue's service does not answer, or another process takes long to create a sweep of this name.
    """
    from sweep.search.storage import absolute_url

    settings = replace(composed.settings, trial_tokens=trial_tokens, created=time.time(), token=secrets.token_hex(8))
    backend_of(settings).check_room(Room(rooms_dir().resolve() / settings.name))
    sources = [(source, _ended_trials(settings, source)) for source in settings.warm_start.import_from]
    settings = backend_of(settings).freeze(settings)
    if settings.storage is not None:
        settings = replace(settings, storage=absolute_url(settings.storage))
    with _claimed(settings, stem) as opened:
        room = opened.room
        if opened.lock is None:
            check_same_sweep(room, settings)
            return opened
        settings = replace(settings, name=room.root.name)
        write_lock(opened.lock, whereabouts())
        for path in room.root.glob(f"{journal_path(room).name}*"):  # of a process that died while it created this room
            path.unlink()
        study = open_study(room, settings, new=True)
        write_atomic(room.root / "recipe.yaml", composed.recipe_text, root=room.root)
        for params in settings.warm_start.enqueue:
            study.enqueue(params)
        for source, trials in sources:
            study.import_trials(source, trials)
        save_settings(room, settings)
        (room.root / CREATION_NOTE).unlink(missing_ok=True)
        return opened


@contextmanager
def _claimed(settings: Settings, stem: str | None) -> Iterator[OpenRoom]:
    """The room of a sweep that is to be created, with its lock; without it if another process has created the sweep.

    If the block fails, the lock is released, and the directory is removed if this process made it.
    """
    group = group_id(settings.room.group)
    opened, is_new = _claim_numbered(stem, group) if stem is not None else _claim_named(settings.name, group)
    try:
        yield opened
    except BaseException:
        if is_new:
            shutil.rmtree(opened.room.root, ignore_errors=True)
        opened.release()
        raise


def _claim_numbered(stem: str, group: int | None) -> tuple[OpenRoom, bool]:
    for name in numbered_names(stem):
        room = _room(name)
        if not make_room_directory(room.root, group):
            continue
        lock = _try_lock(room)
        if lock is not None:  # else a process that was given this very name was quicker
            return OpenRoom(room, lock), True
    raise AssertionError("numbers do not end")


def _claim_named(name: str, group: int | None) -> tuple[OpenRoom, bool]:
    room, is_new = _room(name), False
    deadline = time.monotonic() + CREATION_SECONDS
    while True:
        is_new = make_room_directory(room.root, group) or is_new
        lock = _try_lock(room)
        if room.sweep.exists():  # looked at after the lock was taken, or could not be
            if lock is not None:
                lock.close()
            return OpenRoom(room, None), False
        if lock is not None:
            return OpenRoom(room, lock), is_new
        is_new = False
        if time.monotonic() > deadline:
            raise RetryLater(
                f"another process is creating the sweep {name} in {room.root}; wait, or choose another name"
            )
        time.sleep(POLL_SECONDS)


def _try_lock(room: Room) -> IO[str] | None:
    """The controller's lock of a room, unchanged; None if another process holds it, or has just removed the room."""
    try:
        return take_lock(controller_lock(room))
    except FileNotFoundError:
        return None


def _room(name: str) -> Room:
    return Room((rooms_dir() / name).resolve())


def _ended_trials(settings: Settings, source: str) -> list[optuna.trial.FrozenTrial]:
    """The trials of another sweep that a new one takes over.

    Raises:
        ConfigError: that sweep had another objective, or measured it in another way, or searched another space.
    """
    from sweep.search.distributions import same_space
    from sweep.search.storage import load_study

    room = find_room(source)
    other = load_settings(room)
    theirs, ours = other.objectives[0], settings.objectives[0]
    if (theirs.name, theirs.direction) != (ours.name, ours.direction):
        raise ConfigError(
            f"warm_start.import_from: {source} {theirs.verb.removesuffix('s')}d {theirs.name}, this sweep {ours.verb} "
            f"{ours.name}; name a sweep with the same objective"
        )
    if other.metrics.get(ours.name) != settings.metrics.get(ours.name):
        raise ConfigError(
            f"warm_start.import_from: {source} measured {ours.name} in another way (metric.{ours.name}), so that its "
            "values cannot be compared; name a sweep with the same definition"
        )
    loaded = load_study(reading_storage(room, other), other.name)
    if not same_space(loaded, settings.space):
        raise ConfigError(f"warm_start.import_from: {source} has another space; its trials cannot be taken over")
    return loaded.get_trials(deepcopy=False)
