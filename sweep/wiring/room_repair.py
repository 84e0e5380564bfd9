"""Mends a room: rebuilds its study, raises damaged fences again, and renames what stands in a file's place.

Invariants: the controller's lock is held. Whatever is replaced stays beside its place as `NAME.damaged-1`. A repair
that is killed can be repeated: the rebuilt journal replaces the damaged one by one rename.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sweep.config.settings import Settings
from sweep.errors import ConfigError, RetryLater
from sweep.wiring.room_check import Finding, Mend, check_room
from sweep.wiring.rooms import controller_lock, journal_path, load_settings, whereabouts
from trainer.room import AttemptDir, Room, check_inside, hold, set_aside, write_atomic

COPIES = "damaged"


def repair_room(room: Room) -> Iterator[str]:
    """Mend what can be mended; yields a sentence for each file.

    Raises:
        RetryLater: a controller runs the sweep. OSError: the room cannot be written to.
        ConfigError: an object store carries the room, so that the files here are copies.
    """
    lock = controller_lock(room)
    if os.path.lexists(lock) and not lock.is_file():
        yield f"{lock} → {set_aside(lock).name}"
    with hold(lock, whereabouts()) as mine:
        if not mine:
            raise RetryLater(f"a controller runs {room.root.name}; end it with `sweep stop {room.root.name}` first")
        _check_store(room)
        for finding in check_room(room):
            yield from _mend(room, finding)


def _check_store(room: Room) -> None:
    try:
        url = load_settings(room).store_url
    except ConfigError:
        return  # nothing is known, so nothing is rebuilt either
    if url is not None:
        raise ConfigError(f"{room.root} is a copy of {url}; delete the damaged files here, and they are fetched anew")


def _mend(room: Room, finding: Finding) -> Iterator[str]:
    path = finding.damage.path
    check_inside(path.parent, room.root)
    match finding.mend:
        case Mend.REMOVE:
            path.unlink(missing_ok=True)
            yield f"{path} was removed"
        case Mend.ASIDE:
            yield f"{path} → {set_aside(path).name}"
        case Mend.FENCE:
            kept = set_aside(path)
            files = AttemptDir(path.parent)
            write_atomic(path, str(files.complete_bytes()), root=room.root)
            yield f"{path} was written again; the original is {kept.name}"
        case Mend.JOURNAL:
            yield from _rebuild(room, load_settings(room))


def _rebuild(room: Room, settings: Settings) -> Iterator[str]:
    from sweep.search.journal import journal_storage, read_entries, replayable, write_entries
    from sweep.search.rebuild import rebuild
    from sweep.search.study import create_or_load
    from sweep.wiring.trial_records import trial_records

    journal = journal_path(room)
    entries, _ = read_entries(journal)
    entries = entries[: replayable(entries)]
    records = trial_records(room, settings)
    new = room.root / f".{journal.name}.{secrets.token_hex(8)}"
    try:
        write_entries(new, entries)
        study = create_or_load(journal_storage(new), settings.name, settings.objectives[0])
        warm = settings.warm_start
        done = rebuild(study, settings.space, records, warm.enqueue, bool(warm.import_from))
        kept = _keep(journal)
        new.replace(journal)
    finally:
        new.unlink(missing_ok=True)
    original = f"; the original is {kept.name}" if kept is not None else ""
    yield f"{journal} was rebuilt from {len(entries)} whole lines and the files of {len(records)} trials{original}"
    for numbers, what in (
        (done.told, "ended as their files tell"),
        (done.left_open, "are open; `sweep resume` goes on with them"),
        (done.lost, "are lost: nothing says what they were trained with"),
    ):
        if numbers:
            yield f"trials {', '.join(map(str, numbers))} {what}"


def _keep(path: Path) -> Path | None:
    """Keep what stands at a path under another name as well; None if nothing does."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        return set_aside(path)
    number = 1
    while os.path.lexists(copy := path.with_name(f"{path.name}.{COPIES}-{number}")):
        number += 1
    try:
        copy.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copy2(path, copy)
    return copy
