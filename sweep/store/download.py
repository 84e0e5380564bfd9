"""Downloads a whole room from an object store, or what has changed of it.

Invariant: an outcome is read before the reports of its attempt, so a downloaded outcome comes with all its reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sweep.errors import ConfigError
from sweep.store.keys import SWEEP, file_contents
from trainer.room import Damage, Room, json_object, make_private_directory, read_object, reason_of, usable, write_atomic
from trainer.store.layout import base_key, is_appended, is_room_file, join, with_chunks
from trainer.store.objects import ObjectStore

# In the downloaded room: the tags of the objects that it was made of.
TAGS = ".tags"
# Files that a light download leaves out, as it does adapters.
LARGE_FILES = {"checkpoint.pt", "fenced.pt", "steps.jsonl", "log"}


def download_room(store: ObjectStore, room: Room, light: bool = False) -> int:
    """Download a room, or what has changed of it since the last call; returns how many objects were read.

    Args:
        light: leave out checkpoints, steps, logs and adapters, which `status` and `best` do not need.

    Raises:
        ConfigError: the store holds no sweep, or the local room is another sweep's.
        StoreError: the store does not answer.
    """
    listing = store.list()
    tags = usable(read_object(room.root / TAGS)) or {}
    if SWEEP not in listing or tags.get(SWEEP) != listing[SWEEP]:
        check_same_sweep(store, room)
    room.root.parent.mkdir(parents=True, exist_ok=True)
    make_private_directory(room.root)
    wanted = {key: tag for key, tag in listing.items() if is_room_file(key) and not (light and _is_large(key))}
    changed = {base_key(key) for key, tag in wanted.items() if tags.get(key) != tag}
    small = [key for key in with_chunks(changed, wanted) if not _is_fetched(key)]
    fetched = [key for key in changed if _is_fetched(key)]
    for key, data in file_contents(join(_read(store, small))).items():
        write_atomic(room.root / key, data, durable=False, root=room.root)
    for key in fetched:
        store.fetch(key, room.root / key)
    new_tags = {key: tag for key, tag in wanted.items() if base_key(key) in changed}
    write_atomic(room.root / TAGS, json.dumps({**tags, **new_tags}), durable=False, root=room.root)
    return len(small) + len(fetched)


def check_same_sweep(store: ObjectStore, room: Room) -> None:
    """Check that the store holds a sweep, and that the local room, if it exists, is the same sweep's.

    Raises:
        ConfigError: one of these does not hold.
        StoreError: the store does not answer.
    """
    raw = store.get([SWEEP]).get(SWEEP)
    if raw is None:
        raise ConfigError("the store holds no sweep at this URL; check the URL, or start one there with `sweep run`")
    stored = stored_sweep(raw)
    if is_other_sweep(room, stored):
        raise ConfigError(
            f"the store holds another sweep {stored.get('name')} than the local room {room.root}, which it would "
            "replace; set SWEEP_ROOMS to another directory to look at it"
        )


def is_other_sweep(room: Room, stored: Mapping[str, Any]) -> bool:
    """Whether the local room exists and belongs to another sweep than this `sweep.json` of a store.

    Raises:
        ConfigError: the local one cannot be read.
    """
    local = read_object(room.sweep)
    identity = ("name", "created", "token")  # old versions wrote no token
    if isinstance(local, Damage):
        raise ConfigError(f"{local}; move {room.root} away, then this command fetches the room anew")
    return local is not None and [local.get(key) or "" for key in identity] != [stored.get(k) or "" for k in identity]


def stored_sweep(raw: bytes) -> dict[str, Any]:
    """The `sweep.json` of a store.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return json_object(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{SWEEP} in the store cannot be read: {reason_of(error)}; put a copy of it there") from error


def _read(store: ObjectStore, keys: list[str]) -> dict[str, bytes]:
    """The objects of these keys, outcomes first."""
    outcomes = store.get([key for key in keys if key.endswith("/outcome.json")])
    return outcomes | store.get([key for key in keys if key not in outcomes])


def _is_large(key: str) -> bool:
    return base_key(key).rpartition("/")[2] in LARGE_FILES or "/adapter/" in key


def _is_fetched(key: str) -> bool:
    """Whether a file is downloaded as a whole, without passing through memory."""
    return _is_large(key) and not is_appended(base_key(key))
