"""Finds the rooms of sweeps, and reads and writes the settings that are frozen into them.

Invariants: nothing is started here. `sweep.json` is the last file that is written into a new room, so that a room that
has it is complete. A change of the budget replaces the whole file.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from sweep.config.settings import Settings, settings_from_json
from sweep.errors import ConfigError, GiveUp, RetryLater
from trainer.names import is_name, name_or_empty
from trainer.presence import RoomLostError, RoomPresence
from trainer.room import (
    Damage,
    LockState,
    Room,
    hold,
    lock_state,
    read_object,
    read_text,
    reason_of,
    usable,
    write_atomic,
    write_lock,
)
from trainer.shortening import short_text

DEFAULT_ROOMS = "sweeps"
CHANGEABLE = ("search", "queue")
# What OmegaConf raises, besides its own errors, for a value that it cannot read.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# Keys of torchtune that no trial reads from or writes to: it has a directory of its own in the room.
OUTPUT_PATHS = ("output_dir", "log_dir")


def rooms_dir() -> Path:
    """The directory of the rooms: the value of SWEEP_ROOMS, or `sweeps` in the current directory.

    Raises:
        ConfigError: it, or what it lies in, is a file.
    """
    path = Path(os.path.expanduser(os.environ.get("SWEEP_ROOMS") or DEFAULT_ROOMS))  # noqa: PTH111 - without a home
    for part in (path, *path.parents):
        if os.path.lexists(part):
            if not os.path.isdir(part):  # noqa: PTH112 - answers for any name, also of a directory that is closed
                what = "leads nowhere" if part.is_symlink() else "is a file"
                raise ConfigError(f"the directory of the rooms, {path}: {part} {what}; set SWEEP_ROOMS to a directory")
            break
    return path


def find_room(name: str | None) -> Room:
    """The room of a sweep's name, its path or its URL; without a name the newest one.

    Raises:
        ConfigError: there is no such room. RetryLater: the object store does not answer.
    """
    if name is not None and "://" in name:
        return _fetched(name, light=True)
    known = sorted(rooms_dir().glob("*/sweep.json"), key=_changed_at)
    if name is None:
        if not known:
            raise ConfigError(f"there is no sweep in {rooms_dir()}; start one with `sweep run`, or set SWEEP_ROOMS")
        return Room(known[-1].parent.resolve())
    for path in (rooms_dir() / name, Path(name)):
        if (path / "sweep.json").is_file():
            return Room(path.resolve())
    names = ", ".join(path.parent.name for path in known) or "none"
    raise ConfigError(f"there is no sweep {name} in {rooms_dir()}; known: {names}")


def current_room(name: str | None, light: bool = True) -> Room:
    """The room of a sweep as it is now.

    If an object store carries it and no controller runs on this machine, the files that changed are fetched first.

    Args:
        light: fetch no checkpoints, steps, logs and adapters.

    Raises:
        ConfigError: there is no such room, or the store refuses. RetryLater: the store does not answer.
    """
    if name is not None and "://" in name:
        return _fetched(name, light)
    room = find_room(name)
    url = load_settings(room).store_url
    if url is not None and not controller_runs(room):
        from sweep.store.remote import download

        download(url, room.root, light)
    return room


def _fetched(url: str, light: bool) -> Room:
    from sweep.store.remote import check_url, download

    url = url.rstrip("/")
    name = url.rpartition("/")[2]
    if not is_name(name):
        raise ConfigError(
            f"{url!r} names no sweep: its last part may have letters, digits, `.`, `_` and `-`, without a dot at its "
            "beginning; give the URL of a room"
        )
    room = Room((rooms_dir() / name).resolve())
    if controller_runs(room):  # the room here is newer than the store
        check_url(url, room)
        return room
    return download(url, room.root, light)


def _changed_at(path: Path) -> float:
    """When a file was changed; 0 if that cannot be told, as of another user's."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def numbered_names(stem: str) -> Iterator[str]:
    """`stem-1`, `stem-2`, … without the names that rooms have now. Only making the directory claims a name."""
    for number in count(1):
        if not (rooms_dir() / f"{stem}-{number}").exists():
            yield f"{stem}-{number}"


def free_name(stem: str) -> str:
    """The first of `stem-1`, `stem-2`, … that no room has now."""
    return next(numbered_names(stem))


def load_settings(room: Room) -> Settings:
    """The settings that were frozen into a room.

    Raises:
        ConfigError: they cannot be read.
    """
    raw = read_object(room.sweep)
    if raw is None:
        raise ConfigError(f"{room.sweep} is gone; put a copy of it there, without it the sweep cannot be read")
    if isinstance(raw, Damage):
        raise ConfigError(f"{raw}; put a copy of the file there, without it the sweep cannot be read")
    try:
        return settings_from_json(raw, str(room.sweep))
    except ConfigError as error:
        if str(room.sweep) in str(error):
            raise
        raise ConfigError(f"{room.sweep}: {error}") from error
    except (Exception, RecursionError) as error:  # a section of another shape
        raise ConfigError(f"{room.sweep} is no frozen sweep of this program: {reason_of(error)}") from error


def save_settings(room: Room, settings: Settings) -> None:
    """Freeze settings into a room."""
    write_atomic(room.sweep, json.dumps(settings.to_json(), indent=1), root=room.root)


def check_same_sweep(room: Room, settings: Settings) -> None:
    """Refuse to resume a room that was frozen from other settings than these.

    Raises:
        ConfigError: it names the first sections that differ.
    """
    measured = {"trial_tokens": 0, "base_elsewhere": False, "created": 0.0, "token": "", "directory": ""}
    frozen = load_settings(room)
    old = {**frozen.to_json(), **measured}
    new = {**json.loads(json.dumps(settings.to_json())), **measured}
    differing = [key for key in new if new[key] != old.get(key)]
    if not differing and frozen.directory and _paths(frozen) != _paths(settings):
        differing = [f"directory: its relative paths mean {frozen.directory}"]
    if differing:
        raise ConfigError(
            f"there is a sweep {settings.name} already, with another {', '.join(differing[:3])}; "
            f"resume it with `sweep resume {settings.name}`, or choose another name"
        )


def _paths(settings: Settings) -> dict[str, Any]:
    """The relative paths that a sweep reads from, by key, as absolute ones."""
    from sweep.config.paths import anchored_keys
    from sweep.config.torchtune import resolve

    paths = anchored_keys(resolve(settings.torchtune, {}, {}), settings.directory)
    return {key: path for key, path in paths.items() if key.rpartition(".")[2] not in OUTPUT_PATHS}


def change_settings(
    room: Room, overrides: Sequence[str], check: Callable[[Settings], None] = lambda settings: None
) -> None:
    """Change the budget or the queue of a sweep, e.g. `search.trials=48`; all other settings stay as they were frozen.

    Args:
        check: further checks of the new settings.

    Raises:
        ConfigError: another section, an unknown key or a wrong value; settings that a new sweep would be refused for;
            or a controller is running on this machine.
        RetryLater: a controller is running elsewhere, or the store does not answer.
    """
    from sweep.wiring import compose

    if controller_runs(room):
        raise ConfigError("a controller is running this sweep; `sweep stop` it before you change its budget")
    settings = _changed(room, overrides)
    compose.check(settings)
    check(settings)
    with settled(room):  # this may replace the room's files by newer ones of the store
        save_settings(room, _changed(room, overrides))


@contextmanager
def settled(room: Room) -> Iterator[None]:
    """Hold a room as a controller does while the block changes it; afterwards an object store has the change too.

    Raises:
        ConfigError: the store refuses. RetryLater: a controller runs this sweep, or the store does not answer.
    """
    name, url = room.root.name, load_settings(room).store_url
    with hold(controller_lock(room), whereabouts()) as mine:
        if not mine:
            raise RetryLater(f"another controller runs {name} already; end it with `sweep stop {name}`")
        if url is None:
            yield
            return
        from sweep.store.channel import open_store_channel

        with open_store_channel(room, url, whereabouts()):
            yield


def _changed(room: Room, overrides: Sequence[str]) -> Settings:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    raw = load_settings(room).to_json()
    for word in overrides:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        said = short_text(word, 200)
        if section not in CHANGEABLE or not name or "=" not in word:
            raise ConfigError(f"{said}: a sweep that exists takes search.KEY=VALUE and queue.KEY=VALUE only")
        try:
            read = OmegaConf.from_dotlist([f"v={value}"])
            plain: Any = OmegaConf.to_container(read, resolve=True, throw_on_missing=True)
            raw[section][name] = plain["v"]
        except (YAMLError, OmegaConfBaseException, *UNREADABLE) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(f"{said}: the value cannot be read ({reason}); give {key} a plain value") from error
    return settings_from_json(raw, str(room.sweep))


def worker_of(room: Room, trial: int, attempt: int) -> str:
    """The name of the worker that an attempt was assigned to."""
    spec = usable(read_object(room.attempt(trial, attempt).spec))
    return name_or_empty(spec.get("worker")) if spec is not None else ""


def worker_log(room: Room, name: str) -> Path:
    """The file with the output of a worker; its queue may have named one, which must lie in the room."""
    job = usable(read_object(room.worker(name).job))
    log = Path(os.path.normpath(str(job.get("log", "")).replace("\0", ""))) if job is not None else Path()
    return log if log.is_relative_to(room.root) else room.worker(name).log


def journal_path(room: Room) -> Path:
    """The file of the study, unless `storage` is set."""
    return room.root / "study.journal"


def controller_lock(room: Room) -> Path:
    """The lock that the room's only controller holds."""
    return room.root / "controller.lock"


def adopt_lock(room: Room, descriptor: int) -> IO[str]:
    """The controller's lock of a room from the open file that the parent process has handed down.

    Raises:
        ConfigError: the open file is not this room's lock.
    """
    try:
        os.set_inheritable(descriptor, False)
        if not os.path.samestat(os.fstat(descriptor), controller_lock(room).stat()):
            raise ConfigError(f"the open file {descriptor} is not the lock of {room.root}")
        file = os.fdopen(descriptor, "a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"there is no open file {descriptor} that is the lock of {room.root}") from error
    write_lock(file, whereabouts())
    return file


def presence_check(room: Room, settings: Settings) -> Callable[[], None]:
    """A check for the controller of a room, to be called before it acts.

    It waits while the room is absent, and raises `GiveUp` if the room was deleted or is another sweep's.
    """
    presence = RoomPresence(room, settings.token)

    def check() -> None:
        try:
            presence.check()
        except RoomLostError as error:
            raise GiveUp(str(error)) from None

    return check


def controller_runs(room: Room) -> bool:
    """Whether a controller on this machine is seen to hold the room."""
    return controller_state(room) is LockState.HELD


def controller_state(room: Room) -> LockState:
    """Whether a controller on this machine holds the room, as far as this user may see."""
    return lock_state(controller_lock(room))


def unseen_controller(room: Room) -> str:
    """Why nobody can say whether a controller runs, as a sentence; empty if it can be said."""
    if controller_state(room) is not LockState.UNSEEN:
        return ""
    lock = controller_lock(room)
    return f"whether a controller runs cannot be seen: {lock} cannot be opened by this user, or is no file"


def whereabouts() -> str:
    """This process, its node and its SLURM job, as text for a person."""
    job = os.environ.get("SLURM_JOB_ID")
    node = os.environ.get("SLURMD_NODENAME") if job else None
    return f"process {os.getpid()} on {node or socket.gethostname()}{f', SLURM job {job}' if job else ''}"


def controller_elsewhere(room: Room) -> str:
    """Where a controller on another machine runs, or died, if an object store carries the room; otherwise empty."""
    url = load_settings(room).store_url
    if url is None or controller_runs(room):
        return ""
    from sweep.store.remote import controller_at

    return controller_at(url, room.root)


def controller_whereabouts(room: Room) -> str:
    """Where the controller runs that holds the room, or held it last (see `whereabouts`)."""
    return (read_text(controller_lock(room)) or "").strip()
