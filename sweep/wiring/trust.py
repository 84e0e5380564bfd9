"""What the frozen configuration of a room makes this user run or send, and whether the room is this user's.

Invariant: a room of this user's, of root's or of a group that the sweep names is trusted like a configuration of the
user's own. Another person's is read, and resumed only if it names no program and no database.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
from collections.abc import Collection, Iterator
from typing import Any

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.wiring.access import group_id
from trainer.room import Room

# Keys of the section `evaluate` that name a program; those of a queue are its section's own (`Queue.PROGRAMS`).
EVALUATE_PROGRAMS = ("command", "recipe", "include_path")
# Those of a metric. A function of the person's own stands in `recipe.components` too.
METRIC_PROGRAMS = ("command", "include_path")
# Samplers whose state in the study is a pickle.
PICKLING_SAMPLERS = ("CmaEsSampler",)


def programs(settings: Settings) -> Iterator[tuple[str, Any]]:
    """The keys by which a configuration names programs, has files of the room run, or says where passwords go."""
    for name, section, keys in (
        ("queue", settings.queue, settings.queue.PROGRAMS),
        ("evaluate", settings.evaluate, EVALUATE_PROGRAMS),
        *((f"metric.{name}", section, METRIC_PROGRAMS) for name, section in settings.metrics.items()),
    ):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.name in keys and value and not _shipped(field, value):
                yield f"{name}.{field.name}", value
    if settings.recipe.components:
        yield "recipe.components", settings.recipe.components
    if settings.wandb.hook:
        yield "wandb.hook", settings.wandb.hook
    if settings.wandb.init.get("settings"):
        yield "wandb.init.settings", settings.wandb.init["settings"]
    if settings.storage:
        yield "storage", settings.storage
    if settings.queue.UNPICKLES:
        yield "queue.kind", settings.queue.kind
    if str(settings.sampler.get("_target_", "")).rpartition(".")[2] in PICKLING_SAMPLERS:
        yield "sampler", settings.sampler["_target_"]


def check_owner(room: Room, settings: Settings, used: Collection[str] = ()) -> None:
    """Refuse another person's room whose configuration names programs or a database.

    Args:
        used: the keys that matter for what is to be run; empty: all of them.

    Raises:
        ConfigError: with the owner, the keys, and how to make the room one's own.
    """
    owner = _owner(room)
    if owner in (os.geteuid(), 0) or _is_ours(room, settings.room.group):
        return
    named = [f"{key}={value!s:.80}" for key, value in programs(settings) if not used or key in used]
    if named:
        raise ConfigError(
            f"{room.root} belongs to {_user(owner)}, and its configuration would act as you: "
            f"{', '.join(named[:4])}{' …' if len(named) > 4 else ''}; read {room.sweep}, and copy the room if you "
            "trust it, or have it made with room.group"
        )


def _owner(room: Room) -> int:
    return room.sweep.stat().st_uid


def _is_ours(room: Room, group: str | None) -> bool:
    """Whether the room belongs to a group that the sweep names and that this user is in."""
    try:
        number = group_id(group)
    except ConfigError:
        return False
    return number is not None and room.root.stat().st_gid == number


def _shipped(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a value is the field's own default, which this program ships."""
    return bool(value == field.default)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
