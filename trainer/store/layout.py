"""Maps the files of a room to objects of a store, in which nothing can be appended.

The file `trials/00042/1/spec.json` is the object of the same key. A file that grows by appending is uploaded again as
it grows. Its first `CHUNK` bytes are the object `reports.jsonl`, the next `reports.jsonl@1`, then `reports.jsonl@2` and
so on, so that an upload repeats one chunk at most. The object of an inbox entry names the control files of its attempt
(`stop`, `fence`), so that a worker lists its own directory only.

Invariants: a file has one writer, and so has its object. Only complete lines of an appended file are uploaded. All
chunks but the last are full, and a full chunk never changes. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trainer.names import is_key, is_name
from trainer.room import AttemptDir
from trainer.store.objects import ObjectStore

CHUNK = 256 * 1024  # bytes
APPENDED = {"reports.jsonl", "steps.jsonl", "log", "study.journal"}
LEASE = "controller.lease"
CONTROL = "control"
# The controller's files in the directory of an attempt, a worker and a trial; the worker writes all others there.
CONTROLLER_ATTEMPT_FILES = {"spec.json", "stop", "fence"}
CONTROLLER_WORKER_FILES = {"inbox", "drain", "job.json"}
CONTROLLER_TRIAL_FILES = {"asked", "told.json"}
# Neither side uploads these: a lock holds on one machine only, and `fenced.pt` is copied within the store.
NEVER_UPLOADED = {"lock", "claim", "scratch", "fenced.pt", LEASE, CONTROL}
NEVER_UPLOADED |= {"controller.lock", "controller.log", "ledger", "waits"}


# A room within the room.
EVALUATIONS = "evaluations"
_NUMBER = re.compile(r"[0-9]+")


class Owner(StrEnum):
    """Who writes a file."""

    CONTROLLER = "controller"
    WORKER = "worker"


def owner(key: str) -> Owner | None:
    """The writer of the file at this path relative to the room; None if the file is never uploaded."""
    parts = key.split("/")
    if parts[0] == "trials" and len(parts) > 3:
        name, controllers = parts[3], CONTROLLER_ATTEMPT_FILES
    elif parts[0] == "workers" and len(parts) > 2:
        name, controllers = parts[2], CONTROLLER_WORKER_FILES
    elif parts[0] == "trials" and parts[2:] and parts[2] in CONTROLLER_TRIAL_FILES:
        name, controllers = parts[2], CONTROLLER_TRIAL_FILES
    elif len(parts) == 1:
        name, controllers = parts[0], {parts[0]}
    else:
        return None
    if name in NEVER_UPLOADED or any(part.startswith(".") for part in parts) or name.endswith(".lock"):
        return None
    return Owner.CONTROLLER if name in controllers else Owner.WORKER


def is_room_file(key: str) -> bool:
    """Whether a room, or the room of its evaluations, has a file of this key that may be downloaded.

    A store may hold any keys; only those that pass here become paths.
    """
    if not is_key(key):
        return False
    parts = key.removeprefix(f"{EVALUATIONS}/").split("/")
    if len(parts) == 1:
        return parts[0] == CONTROL or (parts[0] != EVALUATIONS and owner(parts[0]) is not None)
    known = owner("/".join(parts)) is not None
    if parts[0] == "trials" and len(parts) > 3:
        return all(map(_NUMBER.fullmatch, parts[1:3])) and (known or parts[3:] == ["fenced.pt"])
    if parts[0] == "trials":
        return len(parts) == 3 and parts[2] in CONTROLLER_TRIAL_FILES and bool(_NUMBER.fullmatch(parts[1]))
    return parts[0] == "workers" and len(parts) > 2 and is_name(parts[1]) and known


def is_appended(key: str) -> bool:
    """Whether the file of this key grows by appending."""
    return key.rpartition("/")[2] in APPENDED


def base_key(key: str) -> str:
    """The key of a chunk's first chunk, which is the path of the file."""
    return key.partition("@")[0]


def inbox_entry(attempt: AttemptDir) -> bytes:
    """The content of the object of an attempt's inbox entry: the names of its control files, one a line."""
    names = [path.name for path in (attempt.stop, attempt.fence) if path.exists()]
    return "".join(f"{name}\n" for name in names).encode()


def join(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files by path from objects by key. Chunks of an appended file are joined up to the first that is not full."""
    files: dict[str, bytes] = {}
    for key in sorted(contents, key=lambda key: (base_key(key), _chunk_number(key))):
        base, number = base_key(key), _chunk_number(key)
        if number == 0:
            files[base] = contents[key]
        elif len(files.get(base, b"")) == number * CHUNK:  # all earlier chunks are present and full
            files[base] += contents[key]
    return files


def with_chunks(keys: Iterable[str], listing: Iterable[str]) -> list[str]:
    """The keys of the listing that belong to these files: the files' own keys and those of all their chunks."""
    wanted = set(keys)
    return [key for key in listing if base_key(key) in wanted]


@dataclass(frozen=True, slots=True)
class PrefixStore:
    """The `ObjectStore` of the keys below `key` of another store: a room within a room."""

    store: ObjectStore
    key: str

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        tags = self.store.list(self._key(prefix).rstrip("/"), begins)
        return {key.removeprefix(self._key("")): tag for key, tag in tags.items()}

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        contents = self.store.get([self._key(key) for key in keys])
        return {key.removeprefix(self._key("")): data for key, data in contents.items()}

    def put(self, key: str, data: bytes | Path) -> None:
        self.store.put(self._key(key), data)

    def fetch(self, key: str, path: Path) -> bool:
        return self.store.fetch(self._key(key), path)

    def copy(self, source: str, target: str) -> bool:
        return self.store.copy(self._key(source), self._key(target))

    def delete(self, key: str) -> None:
        self.store.delete(self._key(key))

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        return self.store.put_if(self._key(key), data, expected)

    def _key(self, key: str) -> str:
        return f"{self.key}/{key}"


@dataclass(slots=True)
class AppendedFile:
    """Uploads a file that grows by appending.

    Args:
        path: the local file, which need not exist yet.
        key: the key of its first chunk.
        sent: how many bytes the store has.
    """

    path: Path
    key: str
    sent: int = 0
    _size: int = -1

    def put(self, store: ObjectStore) -> bool:
        """Upload what is new, up to the last complete line; False if nothing was new.

        Raises:
            StoreError: the store is unreachable. Chunks uploaded so far are counted, so that the next call continues.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size in (self._size, 0):
            return False
        begin = self.sent // CHUNK * CHUNK
        with self.path.open("rb") as file:
            file.seek(begin)
            data = file.read(size - begin)
        end = begin + data.rfind(b"\n") + 1
        changed = end > self.sent
        while self.sent < end:
            chunk = self.sent // CHUNK
            upto = min(end, (chunk + 1) * CHUNK)
            store.put(f"{self.key}@{chunk}" if chunk else self.key, data[chunk * CHUNK - begin : upto - begin])
            self.sent = upto
        self._size = size
        return changed


def _chunk_number(key: str) -> int:
    number = key.partition("@")[2]
    return int(number) if number.isdigit() else 0
