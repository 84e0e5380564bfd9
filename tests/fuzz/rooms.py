"""Damages copies of rooms at random, and checks that every verb and the controller can deal with it.

    python -m tests.fuzz.rooms [--rooms N] [--minutes M] [--seed S] [--keep DIRECTORY]

The rooms are finished, half-way, paused and with finals; two more were written by version 0.1. Of each damaged copy,
every reading verb is run in this process, then perhaps the repair, then a controller whose workers are played. It is a
violation if

- an exception is none of the program's own, or a verb prints a traceback, or does not end;
- a verb that only reads changes the room;
- the winner is another than the undamaged room's, though its own files and the study are whole, or its value is in no
  report, or its hyperparameters are not those that it was trained with.

A room that fails prints its seed and what was damaged, and the command line that repeats it; its files are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sweep.cli import read_verbs
from sweep.cli.main import main as sweep_main
from sweep.config.exported_yaml import exported_yaml
from sweep.config.settings import settings_from_json
from sweep.errors import SweepError
from sweep.report import export
from sweep.resources import embedded_dir
from sweep.wiring import rooms as wiring_rooms
from tests.fuzz.limits import limited
from tests.fuzz.room_damage import damage
from tests.helpers.played_rooms import KINDS, Played, copy_room, make
from trainer.room import Room, hold

OLD = Path(__file__).resolve().parents[1] / "rooms_of_0_1"
OLD_ROOMS = ("finished", "halfway")
BINARY = {".pt", ".safetensors"}
HANG_SECONDS = 240
# What a verb that writes its result into the room may change there.
WRITTEN = {"best.yaml", "report.html"}
READING = (
    ("status",),
    ("status", "--json"),
    ("best", "--json"),
    ("export", "-o", "-"),
    ("logs",),
    ("doctor", "--room"),
    ("watch",),
)
RARELY = (("report", "-o", "{out}/report.html"), ("replay", "pruner=median"), ("logs", "--trial", "1"), ("stop",))
ENDED = ("complete", "pruned", "failed", "cancelled")


class HangError(BaseException):
    """A verb or a controller did not end."""


@dataclass(frozen=True)
class Truth:
    """What the undamaged room says.

    Args:
        best: what `best --json` printed; empty if there was no complete trial.
        values: by trial the objectives in its final reports.
        params: by trial the hyperparameters.
    """

    best: dict[str, Any]
    values: dict[int, set[float]]
    params: dict[int, dict[str, Any]]


@dataclass
class Case:
    """One damaged room.

    Args:
        done: what was damaged.
        violations: what must not be, with the verb.
        files: of the room after the last verb that only read; empty: they may have changed since.
    """

    seed: int
    source: str
    done: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


class Rooms:
    """The undamaged rooms, and their truths."""

    def __init__(self, folder: Path) -> None:
        self.rooms: dict[str, Room] = {}
        for kind in KINDS:
            self.rooms[kind] = make(kind, folder / kind)
        for name in OLD_ROOMS:
            self.rooms[f"old {name}"] = _unpacked(name, folder / f"old-{name}")
        self.truths = {name: _truth(room) for name, room in self.rooms.items()}


def run_case(known: Rooms, seed: int, folder: Path) -> Case:
    """Damage a copy of a room and try everything on it."""
    rng = random.Random(seed)
    case = Case(seed, rng.choice(sorted(known.rooms)))
    room = copy_room(known.rooms[case.source], folder / "rooms")
    os.environ["SWEEP_ROOMS"] = str(folder / "rooms")
    canary = folder / "canary"
    canary.write_text("nobody writes through a link")
    case.done = damage(room, rng, canary)
    truth = known.truths[case.source]
    _read(case, room, truth, rng, folder)
    if rng.random() < 0.5:
        _verb(case, room, ("doctor", "--repair", "--room"), reads=False)
        _read(case, room, truth, rng, folder)
    _control(case, room)
    _verb(case, room, ("status", "--json"))
    if canary.read_text() != "nobody writes through a link":
        case.violations.append("something was written through a symbolic link")
    return case


def _read(case: Case, room: Room, truth: Truth, rng: random.Random, folder: Path) -> None:
    verbs = [*READING, *(verb for verb in RARELY if rng.random() < 0.08)]
    for verb in verbs:
        words = [word.format(out=folder) for word in verb]
        code, said = _verb(case, room, words, reads=verb != ("stop",))
        if verb == ("best", "--json") and code == 0:
            _check_winner(case, room, truth, json.loads(said))


def _verb(case: Case, room: Room, words: Sequence[str], reads: bool = True) -> tuple[int, str]:
    """Run a verb on a room in this process; returns its exit code and what it printed on standard output."""
    name = room.root.name
    line = [*words, name] if words[-1] == "--room" else [words[0], name, *words[1:]]
    before = (case.files or _snapshot(room.root)) if reads else {}
    case.files = {}
    out, err, code = io.StringIO(), io.StringIO(), -1
    try:
        with (
            limited(HANG_SECONDS, lambda frame: HangError()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = sweep_main(line)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except HangError:
        case.violations.append(f"{' '.join(words)}: does not end")
    except BaseException as error:
        case.violations.append(f"{' '.join(words)}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    if "Traceback" in out.getvalue() + err.getvalue():
        case.violations.append(f"{' '.join(words)}: prints a traceback\n{err.getvalue()}")
    if code in (1, 2) and not (out.getvalue() + err.getvalue()).strip():
        case.violations.append(f"{' '.join(words)}: says nothing, exit code {code}")
    if reads:
        case.files = _snapshot(room.root)
        changed = [path for path in {*before, *case.files} if before.get(path) != case.files.get(path)]
        if changed:
            case.violations.append(f"{' '.join(words)}: changes {changed[:4]}")
    return code, out.getvalue()


def _check_winner(case: Case, room: Room, truth: Truth, said: dict[str, Any]) -> None:
    trial, value = said["trial"], said["value"]
    damaged = {line.rpartition(": ")[0] for line in case.done}
    if "sweep.json" in damaged:  # another metric may be minimised
        return
    own = f"trials/{trial:05d}/"
    if value not in truth.values.get(trial, set()) and not any(path.startswith(own) for path in damaged):
        case.violations.append(f"best: trial {trial} never reported {value}")
    if said["params"] != truth.params.get(trial) and not any(path.startswith(own) for path in damaged):
        case.violations.append(f"best: trial {trial} was not trained with {said['params']}")
    if not truth.best or trial == truth.best["trial"]:
        return
    best = truth.best["trial"]
    if any(path.startswith(f"trials/{best:05d}/") for path in damaged):
        return
    _, state = _verb(Case(0, ""), room, ("status", "--json"))
    row = next((row for row in json.loads(state)["rows"] if row["number"] == best), None)
    if row is not None and row["state"] not in ENDED and "study.journal" in damaged:
        return  # as after a controller that died before it told the study: `status` says so
    case.violations.append(f"best: trial {trial} in place of {best}")


def _control(case: Case, room: Room) -> None:
    """Let a controller go on."""
    case.files = {}
    try:
        with limited(HANG_SECONDS, lambda frame: HangError()), contextlib.redirect_stderr(io.StringIO()):
            lock = wiring_rooms.controller_lock(room)
            with hold(lock, "fuzz") as mine:
                if mine:
                    Played(room).run()
    except HangError:
        case.violations.append("controller: does not end")
    except (SweepError, OSError):
        pass  # one sentence, as `drive` and `main` print it
    except BaseException as error:
        case.violations.append(f"controller: {type(error).__name__}: {error}\n{traceback.format_exc()}")


def _truth(room: Room) -> Truth:
    os.environ["SWEEP_ROOMS"] = str(room.root.parent)
    case = Case(0, "")
    code, best = _verb(case, room, ("best", "--json"))
    _, state = _verb(case, room, ("status", "--json"))
    assert not case.violations, case.violations
    (room.root / "best.yaml").unlink(missing_ok=True)
    rows = json.loads(state)["rows"]
    metric = json.loads(state)["metric"]
    values = {row["number"]: {report[metric] for report in row["reports"] if report["final"]} for row in rows}
    return Truth(json.loads(best) if code == 0 else {}, values, {row["number"]: row["params"] for row in rows})


def _snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Every entry of a directory: its mode, and what it holds or points to."""
    seen = {}
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(directory, name)
            key = str(path.relative_to(root))
            if key in WRITTEN:
                continue
            mode = path.lstat().st_mode
            content = str(path.readlink()) if path.is_symlink() else ""
            if path.is_file() and not path.is_symlink():
                size = path.stat().st_size
                content = hashlib.sha1(path.read_bytes()).hexdigest() if size < 2**24 else str(size)
            seen[key] = (mode, content)
    return seen


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """While the block runs, settings are parsed and YAMLs are edited once for each text: most of the time otherwise."""
    parse, edit = settings_from_json, exported_yaml
    parsed: dict[str, Any] = {}
    edited: dict[str, str] = {}

    def settings(raw: dict[str, Any], where: str) -> Any:
        key = json.dumps([where if "sweep.json" not in where else "", raw])
        if key not in parsed:
            parsed[key] = parse(raw, where)
        return parsed[key]

    def yaml(*given: Any) -> str:
        key = repr(given)
        if key not in edited:
            edited[key] = edit(*given)
        return edited[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring_rooms, "settings_from_json", settings)
        patch.setattr(export, "exported_yaml", yaml)
        patch.setattr(read_verbs, "UNSEEN_SECONDS", 0.0)
        yield


def _unpacked(name: str, folder: Path) -> Room:
    """A room that version 0.1 wrote, with this machine's paths."""
    with tarfile.open(OLD / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    root = folder / name
    paths = {"@ROOT@": str(root / "rooms"), "@EMBEDDED@": str(embedded_dir()), "@PYTHON@": sys.executable}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix not in BINARY:
            text = path.read_text(encoding="utf-8")
            for token, value in paths.items():
                text = text.replace(token, value)
            path.write_text(text, encoding="utf-8")
    return Room((root / "rooms" / name).resolve())


def run_many(count: int, seed: int, minutes: float, keep: Path) -> list[Case]:
    """Run cases with successive seeds until their number or the time is reached; returns those that failed."""
    began, failed = time.monotonic(), []
    keep.mkdir(parents=True, exist_ok=True)
    environment = os.environ.get("SWEEP_ROOMS")
    with tempfile.TemporaryDirectory() as scratch, quick():
        known = Rooms(Path(scratch))
        for index in range(count):
            if time.monotonic() - began > minutes * 60:
                count = index
                break
            folder = Path(tempfile.mkdtemp(prefix=f"room-{seed + index}-", dir=keep))
            case = run_case(known, seed + index, folder)
            if case.violations:
                failed.append(case)
                said = "\n".join(case.violations)
                print(
                    f"FAILED {case.source} {case.done}\n{said}\nrepeat: --rooms 1 --seed {case.seed}; {folder}",
                    flush=True,
                )
            else:
                shutil.rmtree(folder, ignore_errors=True)
            if (index + 1) % 50 == 0:
                print(f"{index + 1} rooms, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{count} rooms, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    if environment is not None:
        os.environ["SWEEP_ROOMS"] = environment
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=10.0, help="start no room after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the first room; the next has the next number")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), help="where failed ones are kept")
    args = parser.parse_args()
    sys.exit(1 if run_many(args.rooms, args.seed, args.minutes, args.keep) else 0)


if __name__ == "__main__":
    main()
