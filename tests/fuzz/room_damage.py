"""Ways in which a room may be damaged, drawn by a seed.

Invariant: a damage is a pure function of the room's files and the generator, so a seed repeats it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.room import Room

DEPTH = 20_000
SPARSE_BYTES = 2**33
NAMES = (
    "..x",
    "-rf",
    "99999999999999999999",
    "00007x",
    "7",
    "\x1b[31mred",
    "a b",
    "ünï",
    "w9999",
    "x\nfailed",
)
# Files that are not there in most rooms, and that a reader looks for.
ABSENT = ("waits", "control", "queue.json", "controller.json", ".tags", "clock", "controller.lock", "creating.json")


def damage(room: Room, rng: random.Random, outside: Path) -> list[str]:
    """Damage one to three files of a room; returns what was done, the path first.

    Args:
        outside: a file outside of the room, to which links are made.
    """
    return [_damage_one(room, rng, outside) for _ in range(rng.choice((1, 1, 2, 3)))]


def _damage_one(room: Room, rng: random.Random, outside: Path) -> str:
    if rng.random() < 0.08:
        return _odd_name(room, rng)
    path = _victim(room, rng)
    kind = rng.choice(["link", *sorted(KINDS)])
    data = b""
    with contextlib.suppress(OSError):
        if path.is_file():  # no pipe that an earlier damage has left
            data = path.read_bytes()
    if kind == "link":
        _clear(path)
        path.symlink_to(outside)
    else:
        KINDS[kind](path, data, rng)
    return f"{path.relative_to(room.root)}: {kind}"


def _victim(room: Room, rng: random.Random) -> Path:
    """A file of the room; each kind of file is as likely as any other, however many there are of it."""
    files = [path for path in sorted(room.root.rglob("*")) if path.is_file() and path.suffix not in (".pt", ".yaml")]
    files += [room.root / "recipe.yaml"]
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault("inbox" if path.parent.name == "inbox" else path.name, []).append(path)
    for name in ABSENT:
        kinds.setdefault(name, [room.root / name])
    attempts = sorted(path for path in room.root.glob("trials/*/*") if path.is_dir())
    for name in ("stop", "fence", "outcome.json"):
        kinds.setdefault(f"{name} anywhere", [path / name for path in attempts])
    workers = sorted(path for path in room.root.glob("workers/*") if path.is_dir())
    for name in ("job.json", "slots", "exit", "lock", "drain", "log"):
        kinds.setdefault(f"{name} anywhere", [path / name for path in workers] or [room.root / name])
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def _odd_name(room: Room, rng: random.Random) -> str:
    """A directory under a name that the program does not give."""
    folder = room.root / rng.choice(("trials", "workers"))
    existing = sorted(path for path in folder.glob("*") if path.is_dir())
    to = folder / rng.choice(NAMES)
    if existing and not to.exists():
        shutil.copytree(rng.choice(existing), to, symlinks=True)
    return f"{to.relative_to(room.root)!s}: odd name"


def _replace(path: Path, data: bytes) -> None:
    _clear(path)
    path.write_bytes(data)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _flip(path: Path, data: bytes, rng: random.Random) -> None:
    data = data or b"x"
    at = rng.randrange(len(data))
    _replace(path, data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])


def _digit(path: Path, data: bytes, rng: random.Random) -> None:
    """Another digit somewhere: the file stays well-formed."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        _replace(path, data[:at] + str(rng.randrange(10)).encode() + data[at + 1 :])


def _line(change: Callable[[list[bytes], int], list[bytes]]) -> Callable[[Path, bytes, random.Random], None]:
    def act(path: Path, data: bytes, rng: random.Random) -> None:
        lines = data.splitlines(keepends=True) or [b"\n"]
        _replace(path, b"".join(change(lines, rng.randrange(len(lines)))))

    return act


def _value(value: Any) -> Callable[[Path, bytes, random.Random], None]:
    """Another JSON value in the place of the whole one, or of a line."""

    def act(path: Path, data: bytes, rng: random.Random) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        if path.suffix in (".jsonl", ".journal") and data:
            lines = data.splitlines(keepends=True)
            lines[rng.randrange(len(lines))] = f"{text}\n".encode()
            _replace(path, b"".join(lines))
        else:
            _replace(path, text.encode())

    return act


def _field(path: Path, data: bytes, rng: random.Random) -> None:
    """A key of an object is absent, or has a value of another type."""
    lines = data.splitlines(keepends=True) if path.suffix in (".jsonl", ".journal") else [data]
    at = rng.randrange(len(lines)) if lines else 0
    try:
        raw = json.loads(lines[at])
        holder = raw
        key = rng.choice(sorted(holder))
        while isinstance(holder[key], dict) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
            key = rng.choice(sorted(holder))
    except (ValueError, IndexError, TypeError):
        return
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice([None, [], {}, "x", -1, 1.5, True, 10**400, float("nan"), [[1]], "../../x", "\x00"])
    lines[at] = json.dumps(raw).encode() + (b"\n" if lines[at].endswith(b"\n") else b"")
    _replace(path, b"".join(lines))


def _link(target: str) -> Callable[[Path, bytes, random.Random], None]:
    def act(path: Path, data: bytes, rng: random.Random) -> None:
        _clear(path)
        path.symlink_to(target.format(name=path.name))

    return act


def _directory(path: Path, data: bytes, rng: random.Random) -> None:
    _clear(path)
    path.mkdir()
    if rng.random() < 0.5:
        (path / "x").write_text("x")


def _pipe(path: Path, data: bytes, rng: random.Random) -> None:
    _clear(path)
    os.mkfifo(path)


def _sparse(path: Path, data: bytes, rng: random.Random) -> None:
    _replace(path, data)
    if rng.random() < 0.1:  # reading the part that is read takes a while
        os.truncate(path, SPARSE_BYTES)


KINDS: dict[str, Callable[[Path, bytes, random.Random], None]] = {
    "utf8": lambda path, data, rng: _replace(path, b"\xff\xfe" + data),
    "nul": lambda path, data, rng: _replace(path, bytes(len(data))),
    "empty": lambda path, data, rng: _replace(path, b""),
    "cut": lambda path, data, rng: _replace(path, data[: rng.randrange(len(data) + 1)]),
    "flip": _flip,
    "digit": _digit,
    "field": _field,
    "list": _value([1, 2, 3]),
    "text": _value('"text"'),
    "number": _value(7),
    "null": _value("null"),
    "not a number": _value("NaN"),
    "huge": _value("9" * 400),
    "deep": _value("[" * DEPTH + "]" * DEPTH),
    "deep object": _value('{"a":' * DEPTH + "1" + "}" * DEPTH),
    "line twice": _line(lambda lines, at: [*lines[: at + 1], *lines[at:]]),
    "line gone": _line(lambda lines, at: [*lines[:at], *lines[at + 1 :]]),
    "lines gone": _line(lambda lines, at: lines[:at]),
    "line torn": _line(lambda lines, at: [*lines[:at], lines[at][: len(lines[at]) // 2], *lines[at + 1 :]]),
    "gone": lambda path, data, rng: _clear(path),
    "directory": _directory,
    "loop": _link("{name}"),
    "dangling": _link("/nonexistent/{name}"),
    "pipe": _pipe,
    "sparse": _sparse,
}
