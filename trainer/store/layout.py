"""What a room looks like in an object store, where nothing can be appended.

A room's file `trials/00042/1/spec.json` is the object of the same key. A file that is appended to is put again as it
grows; from `CHUNK` bytes on, what lies beyond goes to `reports.jsonl@1`, `reports.jsonl@2` and so on, so that no put
repeats more than one chunk. An inbox entry's object says what else waits for its attempt (`stop`, `fence`), so that a
worker needs to list its own directory only.

Invariants: a file has one writer, and so has its object. Of an appended file only complete lines are put; all chunks
but the last are full, and a full chunk never changes. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trainer.room import AttemptDir
from trainer.store.objects import Store

CHUNK = 256 * 1024
APPENDED = {"reports.jsonl", "steps.jsonl", "log", "study.journal"}
LEASE = "controller.lease"
CONTROL = "control"
# Of an attempt, a worker and an evaluation, what the controller writes; what else lies there is the worker's.
CONTROLLERS_ATTEMPT = {"spec.json", "stop", "fence"}
CONTROLLERS_WORKER = {"inbox", "drain", "job.json"}
CONTROLLERS_TRIAL = {"asked", "told.json"}
# What neither side puts: locks hold on one machine only, `fenced.pt` is made within the store.
NOBODYS = {"lock", "claim", "scratch", "fenced.pt", LEASE, CONTROL, "controller.lock", "controller.log", "ledger"}


class Owner(StrEnum):
    """Who writes a file."""

    CONTROLLER = "controller"
    WORKER = "worker"


def owner(key: str) -> Owner | None:
    """Who writes the file of this path relative to the room; None for what stays where it is."""
    parts = key.split("/")
    if parts[0] == "trials" and len(parts) > 3:
        own, mine = parts[3], CONTROLLERS_ATTEMPT
    elif parts[0] == "workers" and len(parts) > 2:
        own, mine = parts[2], CONTROLLERS_WORKER
    elif parts[0] == "trials" and parts[2:] and parts[2] in CONTROLLERS_TRIAL:
        own, mine = parts[2], CONTROLLERS_TRIAL
    elif len(parts) == 1:
        own, mine = parts[0], {parts[0]}
    else:
        return None
    if own in NOBODYS or any(part.startswith(".") for part in parts) or own.endswith(".lock"):
        return None
    return Owner.CONTROLLER if own in mine else Owner.WORKER


def is_appended(key: str) -> bool:
    """Whether the file of this key grows by appending."""
    return key.rpartition("/")[2] in APPENDED


def base_key(key: str) -> str:
    """The key of a chunk's first chunk, which is the file's path."""
    return key.partition("@")[0]


def bell(attempt: AttemptDir) -> bytes:
    """The content of the inbox entry's object: what waits for this attempt besides its specification."""
    words = [path.name for path in (attempt.stop, attempt.fence) if path.exists()]
    return "".join(f"{word}\n" for word in words).encode()


def join(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files by path from objects by key: the chunks of an appended file put together, as far as they are whole."""
    files: dict[str, bytes] = {}
    for key in sorted(contents, key=lambda key: (base_key(key), _chunk_number(key))):
        base, number = base_key(key), _chunk_number(key)
        if number == 0:
            files[base] = contents[key]
        elif len(files.get(base, b"")) == number * CHUNK:  # all chunks before it are here, and full
            files[base] += contents[key]
    return files


def with_chunks(keys: Iterable[str], listing: Iterable[str]) -> list[str]:
    """These files' keys with those of all their chunks."""
    wanted = set(keys)
    return [key for key in listing if base_key(key) in wanted]


@dataclass(frozen=True, slots=True)
class Below:
    """The `Store` of what lies below a key of another one: a room in a room."""

    store: Store
    key: str

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        found = self.store.list(self._key(prefix).rstrip("/"), begins)
        return {key.removeprefix(self._key("")): tag for key, tag in found.items()}

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        found = self.store.get([self._key(key) for key in keys])
        return {key.removeprefix(self._key("")): data for key, data in found.items()}

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
class Growth:
    """Puts an appended file as it grows.

    Args:
        sent: bytes that the store has.
    """

    path: Path
    key: str
    sent: int = 0
    _size: int = -1

    def put(self, store: Store) -> bool:
        """Put what is new, up to the last complete line; False where nothing was.

        Raises:
            StoreError: the store does not answer; what was put is known, and the next call goes on.
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
