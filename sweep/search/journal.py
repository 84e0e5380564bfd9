"""The journal of a study, a file of lines: what it holds, which line is damaged, and its storage.

Optuna replays the lines one after the other. A line that is no entry ends that in whatever its code happens to raise,
and an entry of another shape may do so much later. Here both end in one error, which names the line.

Invariants: a reader writes nothing, not even an empty journal. What stands before the first damaged line is whole.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage
from optuna.storages.journal import BaseJournalBackend

from sweep.errors import ConfigError, GiveUp
from sweep.search.journal_entries import check_entry
from sweep.search.optuna_private import CheckedJournalStorage, ForwardJournalBackend
from trainer.room import (
    NOT_THE_VALUE,
    Damage,
    DamageKind,
    cut_torn_line,
    json_object,
    open_file,
    reason_of,
)

# More than the longest entry. A journal that grew by zeros, as after a power cut, has a line of gigabytes.
LAST_BYTES = 2**20


class EntriesFile(ForwardJournalBackend):
    """A journal file whose entries are checked as they are read."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The entries from a number on.

        Raises:
            ValueError, TypeError, KeyError, RecursionError: a line is no entry.
        """
        for entry in super().read_logs(log_number_from):
            check_entry(entry)
            yield entry


class WholeLinesBackend(EntriesFile):
    """A journal file to which lines are appended whole or not at all, for its only writer."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries.

        Raises:
            OSError: the disk is full, or fails. The file is as before.
        """
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except BaseException:
            os.truncate(self._path, size)  # a nearly full disk has taken a part
            raise


class EntriesBackend(BaseJournalBackend):
    """The first entries of a journal, in memory; nothing can be appended."""

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self.entries = entries
        self.count = 0

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The entries from a number on, up to `count`."""
        yield from self.entries[log_number_from : self.count]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse: nothing is written."""
        raise NotImplementedError


def journal_storage(path: Path) -> BaseStorage:
    """The journal file of a room, for its only writer, which holds the room's lock.

    A line that a crash left incomplete is cut off first.

    Raises:
        ConfigError: the journal is damaged.
        OSError: it cannot be written, or is a symbolic link.
    """
    cut_torn_line(path)
    if path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)  # a killed writer left it; the room's lock excludes another one
        check_end(path)
    return CheckedJournalStorage(WholeLinesBackend(path), lambda error: damage_error(path, error))


def reading_storage(path: Path) -> BaseStorage:
    """The journal file of a room, for a reader; a controller may be writing, so nothing is repaired.

    Raises:
        ConfigError: the journal is damaged. GiveUp: there is none.
    """
    if not os.path.lexists(path):
        raise GiveUp(f"{path} is gone, so that nothing is known of the study; {advice(path)}")
    handle = open_file(path)
    if isinstance(handle, Damage):
        raise ConfigError(f"{handle}; {advice(path)}")
    if handle is not None:
        with os.fdopen(handle, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LAST_BYTES))
            if size >= LAST_BYTES and b"\n" not in file.read():
                raise damage_error(path, ValueError("its last line is too long"))
    return CheckedJournalStorage(EntriesFile(str(path)), lambda error: damage_error(path, error))


def damage_error(path: Path, error: Exception) -> ConfigError:
    """The error of a journal that cannot be replayed, in one sentence."""
    damage = find_damage(path) or Damage(path, DamageKind.NO_VALUE, reason_of(error))
    return ConfigError(f"{damage}; what stands before it is whole; {advice(path)}")


def advice(path: Path) -> str:
    """What a person can do about a damaged journal."""
    name = path.parent.name
    return f"`sweep doctor --room {name}` says what can be saved, and with `--repair` saves it and keeps the original"


def find_damage(path: Path) -> Damage | None:
    """The first damage of a journal; None if all of it can be replayed.

    An incomplete last line is no damage: its writer is writing, or has died.
    """
    entries, damage = read_entries(path)
    replayed = replayable(entries)
    if replayed < len(entries):
        return Damage(path, DamageKind.NO_VALUE, "it fits none of the lines before it", replayed + 1)
    return damage


def read_entries(path: Path) -> tuple[list[dict[str, Any]], Damage | None]:
    """The entries of a journal up to the first line that is none, and the damage of that line.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    handle = open_file(path)
    if not isinstance(handle, int):
        return [], handle or Damage(path, DamageKind.NO_FILE, "it is gone")
    entries: list[dict[str, Any]] = []
    with os.fdopen(handle, "rb") as file:
        if not os.fstat(handle).st_size:
            return [], Damage(path, DamageKind.NO_VALUE, "it is empty")
        for number in itertools.count(1):
            line = file.readline(LAST_BYTES)
            if len(line) == LAST_BYTES:
                return entries, Damage(path, DamageKind.NO_VALUE, f"it has {LAST_BYTES:,} bytes or more", number)
            if not line.endswith(b"\n"):  # its writer is writing, or has died
                break
            try:
                entry = json_object(line.decode())
                check_entry(entry)
            except UnicodeDecodeError:
                return entries, Damage(path, DamageKind.NO_TEXT, "it is no UTF-8", number)
            except NOT_THE_VALUE as error:
                reason = f"it is no entry of a study ({reason_of(error)})"
                return entries, Damage(path, DamageKind.NO_VALUE, reason, number)
            entries.append(entry)
    return entries, None


def replayable(entries: Sequence[dict[str, Any]]) -> int:
    """How many of these entries Optuna can replay, from the first on."""
    backend = EntriesBackend(entries)
    storage = CheckedJournalStorage(backend, lambda error: error)
    for backend.count in range(1, len(entries) + 1):
        try:
            storage.get_all_studies()
        except (AssertionError, OptunaError, *NOT_THE_VALUE):
            return backend.count - 1
    return len(entries)


def check_end(path: Path) -> None:
    """Refuse to append to a journal whose last line is no entry: Optuna takes it for a line that is being written.

    Raises:
        ConfigError: it is not.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LAST_BYTES))
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        json_object(last.decode() if size else "{}")
    except NOT_THE_VALUE as error:
        raise damage_error(path, error) from error


def trial_count(path: Path, name: str) -> int | None:
    """How many trials the study of this name has in a journal without damage; None if there is no such study."""
    backend = EntriesBackend(read_entries(path)[0])
    backend.count = len(backend.entries)
    storage = CheckedJournalStorage(backend, lambda error: error)
    try:
        return storage.get_n_trials(storage.get_study_id_from_name(name))
    except KeyError:
        return None


def write_entries(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a journal of these entries, which must not exist."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        file.flush()
        os.fsync(file.fileno())
