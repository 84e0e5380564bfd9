"""Finds rooms, and reads and writes the settings that are frozen into them.

Invariants: nothing of a sweep is started here. `sweep.json` is the last file that a new room gets, so that a room
that has it is complete; changing a budget rewrites it whole.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweep.config.settings import Settings, settings_from_json
from sweep.errors import ConfigError, RetryLater
from trainer.room import Room, held, hold, read_json, read_text, write_atomic

DEFAULT_ROOMS = "sweeps"
CHANGEABLE = ("search", "queue")


def rooms_dir() -> Path:
    """Where rooms lie: SWEEP_ROOMS, or `sweeps` here."""
    return Path(os.environ.get("SWEEP_ROOMS", DEFAULT_ROOMS)).expanduser()


def find_room(name: str | None) -> Room:
    """The room of a name or path; the newest one without a name.

    Raises:
        ConfigError: there is none.
    """
    if name is not None and "://" in name:
        return _fetched(name, light=True)
    known = sorted(rooms_dir().glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
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
    """The same, as it is now: where an object store carries it and no controller runs here, what changed is fetched.

    Args:
        light: without checkpoints, steps, logs and adapters.

    Raises:
        ConfigError: there is none, or the store refuses. RetryLater: the store does not answer.
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
    room = Room((rooms_dir() / url.rpartition("/")[2]).resolve())
    if controller_runs(room):  # it writes there, and the store has less
        check_url(url, room)
        return room
    return download(url, room.root, light)


def free_name(stem: str) -> str:
    """The first of `stem-1`, `stem-2`, … that no room has."""
    number = 1
    while (rooms_dir() / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def load_settings(room: Room) -> Settings:
    """The frozen settings of a room.

    Raises:
        ConfigError: they cannot be read.
    """
    raw = read_json(room.sweep)
    if not isinstance(raw, dict):
        raise ConfigError(f"{room.sweep} cannot be read as JSON")
    return settings_from_json(raw, str(room.sweep))


def save_settings(room: Room, settings: Settings) -> None:
    write_atomic(room.sweep, json.dumps(settings.to_json(), indent=1))


def check_same_sweep(room: Room, settings: Settings) -> None:
    """Refuse to go on with a room that was frozen from other settings than these.

    Raises:
        ConfigError: naming the first sections that differ.
    """
    measured = {"trial_tokens": 0, "created": 0.0}
    old = {**load_settings(room).to_json(), **measured}
    new = {**json.loads(json.dumps(settings.to_json())), **measured}
    differing = [key for key in new if new[key] != old.get(key)]
    if differing:
        raise ConfigError(
            f"there is a sweep {settings.name} already, with another {', '.join(differing[:3])}; "
            f"go on with `sweep resume {settings.name}`, or choose another name"
        )


def change_settings(
    room: Room, overrides: Sequence[str], check: Callable[[Settings], None] = lambda settings: None
) -> None:
    """Change a sweep's budget or queue, e.g. `search.trials=48`; everything else stays as it was frozen.

    Args:
        check: what else a new sweep's settings are refused by.

    Raises:
        ConfigError: another section, an unknown key or a wrong value, or what a new sweep would be refused for; or a
            controller is running here. RetryLater: one is running elsewhere, or the store does not answer.
    """
    from sweep.wiring import compose

    if controller_runs(room):
        raise ConfigError("a controller is running this sweep; `sweep stop` it before you change its budget")
    settings = _changed(room, overrides)
    compose.check(settings)
    check(settings)
    with settled(room):  # the store's word may replace what is here
        save_settings(room, _changed(room, overrides))


@contextmanager
def settled(room: Room) -> Iterator[None]:
    """Hold a room as its controller does, to change it for a person; a store that carries it has the change afterwards.

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
    from yaml import YAMLError

    raw = load_settings(room).to_json()
    for word in overrides:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if section not in CHANGEABLE or not name or "=" not in word:
            raise ConfigError(f"{word}: a sweep that exists takes search.KEY=VALUE and queue.KEY=VALUE only")
        try:
            raw[section][name] = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"]  # type: ignore[call-overload, index]
        except YAMLError as error:
            raise ConfigError(f"{word}: {value} cannot be read as YAML; give {key} a value in one line") from error
    return settings_from_json(raw, str(room.sweep))


def worker_of(room: Room, trial: int, attempt: int) -> str:
    """The worker that an attempt was given to."""
    return str((read_json(room.attempt(trial, attempt).spec) or {}).get("worker", ""))


def worker_log(room: Room, name: str) -> Path:
    """Where a worker's output is: its queue may say so."""
    job = read_json(room.worker(name).job)
    return Path(job["log"]) if isinstance(job, dict) and "log" in job else room.worker(name).log


def journal_path(room: Room) -> Path:
    return room.root / "study.journal"


def controller_lock(room: Room) -> Path:
    return room.root / "controller.lock"


def controller_runs(room: Room) -> bool:
    return held(controller_lock(room))


def whereabouts() -> str:
    """Where this process is, for a person who looks for it."""
    job = os.environ.get("SLURM_JOB_ID")
    node = os.environ.get("SLURMD_NODENAME") if job else None
    return f"process {os.getpid()} on {node or socket.gethostname()}{f', SLURM job {job}' if job else ''}"


def controller_elsewhere(room: Room) -> str:
    """Where another machine's controller of a room in an object store runs, or died; empty where none does."""
    url = load_settings(room).store_url
    if url is None or controller_runs(room):
        return ""
    from sweep.store.remote import controller_at

    return controller_at(url, room.root)


def controller_whereabouts(room: Room) -> str:
    """Where the controller runs that holds the room, or held it last."""
    return (read_text(controller_lock(room)) or "").strip()
