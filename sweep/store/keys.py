"""Keys of a room's objects: which are written once, and in which order related files are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SWEEP = "sweep.json"
# A file comes after those that it refers to; all other files come first, in any order.
WRITE_ORDER = (SWEEP, "job.json", "fence", "spec.json", "stop", "drain", "outcome.json")


def in_write_order(keys: Iterable[str]) -> list[str]:
    """These keys in an order in which each file makes sense together with those before it."""
    return sorted(keys, key=lambda key: (_rank(key), key))


def is_inbox_entry(key: str) -> bool:
    """Whether the object is an entry of a worker's inbox; its file is empty."""
    return "/inbox/" in key


def is_written_once(key: str) -> bool:
    """Whether the controller writes the file of this key once and never changes it."""
    return key.startswith("trials/") or key.endswith("/drain")


def file_contents(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """What to write into the room's files for these objects, in write order."""
    return {key: b"" if is_inbox_entry(key) else objects[key] for key in in_write_order(objects)}


def _rank(key: str) -> int:
    name = key.rpartition("/")[2]
    if is_inbox_entry(key):
        return len(WRITE_ORDER) + 1
    return WRITE_ORDER.index(name) + 1 if name in WRITE_ORDER else 0
