"""Creates and opens sweeps: finds rooms, freezes settings into them, and puts a controller together.

Invariants: `sweep.json` is written once, last of all that a room needs, so that a room that has it is complete.
Changing a budget rewrites it whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.model import Mode
from sweep.settings import Settings, settings_from_json
from trainer.contract import TrialSpec
from trainer.room import Room, held, read_json, write_atomic

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.config import Composed
    from sweep.dispatch.local import LocalDispatcher
    from sweep.loop import Controller, Listener
    from sweep.nursery import Nursery
    from sweep.study import OptunaStudy, StudyConfig

DEFAULT_ROOMS = "sweeps"
CHANGEABLE = ("search", "queue")


class WallClock:
    """A `Clock` on the machine's wall clock, which goes on over restarts."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def rooms_dir() -> Path:
    """Where rooms lie: SWEEP_ROOMS, or `sweeps` here."""
    return Path(os.environ.get("SWEEP_ROOMS", DEFAULT_ROOMS)).expanduser()


def find_room(name: str | None) -> Room:
    """The room of a name or path; the newest one without a name.

    Raises:
        ConfigError: there is none.
    """
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


def create_room(composed: Composed, trial_tokens: int) -> Room:
    """A new room with frozen settings, its study and its warm start.

    Raises:
        ConfigError: a warm start does not fit.
    """
    settings = replace(composed.settings, trial_tokens=trial_tokens, created=time.time())
    room = Room((rooms_dir() / settings.name).resolve())
    write_atomic(room.root / "recipe.yaml", composed.recipe_text)
    study = open_study(room, settings)
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    for source in settings.warm_start.import_from:
        _import(study, settings, source)
    save_settings(room, settings)
    return room


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


def change_settings(room: Room, overrides: Sequence[str]) -> None:
    """Change a sweep's budget or queue, e.g. `search.trials=48`; everything else stays as it was frozen.

    Raises:
        ConfigError: another section, an unknown key or a wrong value; or a controller is running.
    """
    from omegaconf import OmegaConf

    if controller_runs(room):
        raise ConfigError("a controller is running this sweep; `sweep stop` it before you change its budget")
    raw = load_settings(room).to_json()
    for word in overrides:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if section not in CHANGEABLE or not name or "=" not in word:
            raise ConfigError(f"{word}: a sweep that exists takes search.KEY=VALUE and queue.KEY=VALUE only")
        raw[section][name] = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"]  # type: ignore[call-overload, index]
    save_settings(room, settings_from_json(raw, str(room.sweep)))


def worker_of(room: Room, trial: int, attempt: int) -> str:
    """The worker that an attempt was given to."""
    return str((read_json(room.attempt(trial, attempt).spec) or {}).get("worker", ""))


def study_config(settings: Settings) -> StudyConfig:
    """What makes a study of these settings."""
    from sweep.config import build_pruner, build_sampler, keeps_one_seed
    from sweep.study import StudyConfig

    return StudyConfig(
        name=settings.name,
        space=settings.space,
        metric=settings.metric,
        seed=settings.search.seed,
        sampler=lambda seed: build_sampler(settings, seed),
        pruner=build_pruner(settings),
        per_trial_seed=not keeps_one_seed(settings),
    )


def open_study(room: Room, settings: Settings) -> OptunaStudy:
    """The study of a room, for its one controller."""
    from sweep.study import OptunaStudy, journal_storage

    room.root.mkdir(parents=True, exist_ok=True)
    return OptunaStudy(study_config(settings), settings.storage or journal_storage(journal_path(room)))


def journal_path(room: Room) -> Path:
    return room.root / "study.journal"


def reading_storage(room: Room, settings: Settings) -> BaseStorage | str:
    """The study's storage, for a reader beside a running controller."""
    from sweep import study

    return settings.storage or study.reading_storage(journal_path(room))


def worker_count(settings: Settings) -> int:
    """How many workers the queue comes to on this machine."""
    from sweep.dispatch.local import cores, visible_gpus

    if settings.queue.workers is not None:
        return settings.queue.workers
    return len(visible_gpus()) if on_gpu(settings) else max(1, cores())


def on_gpu(settings: Settings) -> bool:
    """Whether the recipe trains on CUDA.

    Raises:
        ConfigError: it wants CUDA, and this machine shows no GPU.
    """
    from sweep.dispatch.local import visible_gpus

    device = str(settings.torchtune.get("device"))
    if device.startswith("cuda") and not visible_gpus():
        raise ConfigError(
            f"device={device}, but this machine shows no GPU to queue=local; "
            "set recipe.overrides.device=cpu, or CUDA_VISIBLE_DEVICES"
        )
    return device.startswith("cuda")


def make_dispatcher(room: Room, settings: Settings, nursery: Nursery | None = None) -> LocalDispatcher:
    """The dispatcher of the configured queue; without a nursery it starts each worker by itself."""
    from sweep.dispatch.local import LocalDispatcher, cores, visible_gpus

    queue = settings.queue
    threads = queue.threads or max(1, cores() // worker_count(settings))
    return LocalDispatcher(
        room=room,
        gpus=visible_gpus() if on_gpu(settings) else (),
        threads=threads,
        trials=queue.trials_per_worker or 0,
        idle_seconds=queue.idle_seconds,
        env=queue.env,
        nursery=nursery,
    )


def make_nursery(settings: Settings) -> Nursery:
    """Processes that import torch while the data are counted; none is started yet."""
    from sweep.nursery import Nursery

    if not on_gpu(settings):
        return Nursery()
    dispatcher = make_dispatcher(Room(Path()), settings)
    return Nursery([dispatcher.own_env(place) for place in range(worker_count(settings))])


def make_controller(
    room: Room,
    settings: Settings,
    parts: tuple[OptunaStudy, Nursery],
    listener: Listener,
    mode: Callable[[], Mode],
) -> Controller:
    """A controller over the real world, from its study and nursery; the caller holds the room's lock."""
    from sweep.channel import RoomChannel
    from sweep.loop import Controller, Ports

    study, nursery = parts
    workers = worker_count(settings)
    ports = Ports(study, RoomChannel(room), make_dispatcher(room, settings, nursery), WallClock())
    return Controller(
        ports=ports,
        limits=settings.limits(workers),
        spec=lambda trial, attempt, worker: trial_spec(settings, study.params(trial), (trial, attempt, worker)),
        listener=listener,
        mode=mode,
        created=settings.created,
        poll_seconds=settings.queue.poll_seconds,
    )


def trial_spec(settings: Settings, params: Any, identity: tuple[int, int, str]) -> TrialSpec:
    """The specification of an attempt (trial, attempt, worker)."""
    from sweep.recipe import resolve

    trial, attempt, worker = identity
    config = resolve(settings.torchtune, params, settings.derive)
    if config.get("seed") is None:
        config["seed"] = settings.search.seed  # torchtune would draw one, and the trial could not be repeated
    return TrialSpec(
        sweep=settings.name,
        trial=trial,
        attempt=attempt,
        worker=worker,
        config=config,
        milestone_tokens=settings.milestone_tokens,
        checkpoint_every=settings.trial.checkpoint_every,
        guard=settings.guard,
        components=tuple(settings.recipe.components),
    )


def controller_lock(room: Room) -> Path:
    return room.root / "controller.lock"


def controller_runs(room: Room) -> bool:
    return held(controller_lock(room))


def _import(study: OptunaStudy, settings: Settings, source: str) -> None:
    from sweep.study import load_study, same_space

    room = find_room(source)
    other = load_settings(room)
    if other.metric != settings.metric:
        raise ConfigError(
            f"warm_start.import_from: {source} minimised {other.metric}, this sweep minimises {settings.metric}"
        )
    loaded = load_study(reading_storage(room, other), other.name)
    if not same_space(loaded, settings.space):
        raise ConfigError(f"warm_start.import_from: {source} has another space; its trials cannot be taken over")
    study.import_trials(other.name, loaded.get_trials(deepcopy=False))
