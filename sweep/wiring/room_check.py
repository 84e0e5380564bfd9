"""Looks at every file of a room and says which are damaged, what that means for the sweep, and what can be mended.

Invariant: nothing is written, so the room may be another user's, or lie on a file system that is read-only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sweep.controller.ledger import is_entry, ledger_path
from sweep.errors import ConfigError
from sweep.evaluation.controller import ENDING_FILE, ending_of
from sweep.evaluation.jobs import evaluations_room
from sweep.wiring.rooms import controller_lock, journal_path, load_settings
from trainer.contract import Outcome, Report, Step, TrialSpec, decode, read_exit, read_message, read_stop
from trainer.names import is_name
from trainer.room import AttemptDir, Damage, DamageKind, Room, read, read_bytes, read_object, stale_scratch


class Mend(StrEnum):
    """What a repair does about a damaged file; the original stays beside it in each case."""

    NOTHING = "nothing"
    ASIDE = "set aside"  # what stands in the file's place is renamed, so that its writer can write it again
    FENCE = "fence"  # written again: what stands in the reports by now counts
    JOURNAL = "journal"  # rebuilt: what stands before the damage, and what the trials' files tell
    REMOVE = "remove"  # a half-written file that a killed process left


@dataclass(frozen=True, slots=True)
class Finding:
    """A damaged file of a room.

    Args:
        means: what follows for the sweep, as a clause.
    """

    damage: Damage
    means: str
    mend: Mend = Mend.NOTHING


def check_room(room: Room) -> list[Finding]:
    """Everything that is damaged in a room, that of its evaluations included."""
    findings = [*_sweep_files(room), *_trials(room), *_workers(room)]
    inner = evaluations_room(room)
    if inner.root.is_dir():
        findings += [*_trials(inner), *_workers(inner), *_endings(inner)]
    findings += _leftovers(room)
    return [_mendable(finding) for finding in findings]


def _mendable(finding: Finding) -> Finding:
    """The finding; what is no file is set aside, except a specification, whose attempt would be forgotten."""
    damage = finding.damage
    aside = damage.kind is DamageKind.NO_FILE and finding.mend is Mend.NOTHING and damage.path.name != "spec.json"
    return Finding(damage, finding.means, Mend.ASIDE) if aside and os.path.lexists(damage.path) else finding


def _sweep_files(room: Room) -> Iterator[Finding]:
    yield from _settings(room)
    recipe = room.root / "recipe.yaml"
    yield from _finding_of(_text(recipe) or _missing(recipe), "nothing can be exported; put a copy of it there")
    yield from _journal(room)
    yield from _lines(ledger_path(room), is_entry, "these decisions are not shown")
    for name in ("waits", "control"):
        yield from _finding_of(_text(room.root / name), "it counts as absent")
    lock = read_bytes(controller_lock(room))
    yield from _finding_of(lock if isinstance(lock, Damage) else None, "nobody can say whether a controller runs")
    for name in ("queue.json", "controller.json", ".tags"):
        yield from _finding_of(read_object(room.root / name), "it counts as absent")


def _settings(room: Room) -> Iterator[Finding]:
    try:
        load_settings(room)
    except ConfigError as error:
        damage = read_object(room.sweep)
        if not isinstance(damage, Damage):
            damage = Damage(room.sweep, DamageKind.NO_VALUE, str(error).removeprefix(f"{room.sweep} "))
        yield Finding(damage, "the sweep cannot be read; put a copy of the file there")


def _journal(room: Room) -> Iterator[Finding]:
    """The study; nothing if a storage of its own holds it, or nobody can say whether one does."""
    from sweep.search.journal import find_damage, trial_count

    try:
        settings = load_settings(room)
    except ConfigError:
        return
    if settings.storage is not None:
        return
    path, with_files = journal_path(room), room.trials()  # in this order: the study knows a trial first
    damage = find_damage(path)
    if damage is None:
        count = trial_count(path, settings.name)
        lacks = [number for number in with_files if number >= (count or 0) and room.attempts(number)]
        if count is None:
            damage = Damage(path, DamageKind.NO_VALUE, f"it holds no study named {settings.name}")
        elif lacks:
            numbers = ", ".join(map(str, lacks[:8]))
            damage = Damage(path, DamageKind.NO_VALUE, f"it has lost its end, and lacks trials {numbers}")
    if damage is not None:
        yield Finding(damage, "what stands before it is whole, the rest must be rebuilt", Mend.JOURNAL)


def _trials(room: Room) -> Iterator[Finding]:
    yield from _foreign(room.root / "trials", {f"{number:05d}" for number in room.trials()})
    for trial in room.trials():
        for number in room.attempts(trial):
            yield from _attempt(room.attempt(trial, number))


def _attempt(files: AttemptDir) -> Iterator[Finding]:
    yield from _finding_of(
        read_message(TrialSpec, files.spec), "its worker and its configuration are not known; it counts as lost if open"
    )
    yield from _finding_of(
        read_message(Outcome, files.outcome), "the attempt counts as lost if its trial is open; if not, the study knows"
    )
    yield from _finding_of(read_stop(files.stop), "it asks for nothing; a controller asks again")
    fence = files.read_fence()
    yield from _finding_of(fence, "none of the attempt's reports is shown", Mend.FENCE)
    yield from _lines(files.reports, lambda line: bool(decode(Report, line)), "these reports are lost")
    yield from _lines(files.steps, lambda line: bool(decode(Step, line)), "these steps are lost")


def _workers(room: Room) -> Iterator[Finding]:
    yield from _foreign(room.root / "workers", set(room.workers()))
    for name in room.workers():
        files = room.worker(name)
        yield from _finding_of(read_object(files.job), "the worker's job is not known, and its place counts as 0")
        yield from _finding_of(read_exit(files.exit), "it counts as absent")
        for path in (files.beat, files.slots, files.drain):
            yield from _finding_of(_text(path), "it counts as absent")
        lock = read_bytes(files.lock)
        yield from _finding_of(lock if isinstance(lock, Damage) else None, "the worker counts as ended")


def _endings(room: Room) -> Iterator[Finding]:
    for trial in room.trials():
        if os.path.lexists(room.trial(trial) / ENDING_FILE):
            yield from _finding_of(ending_of(room, trial), "the evaluation counts as open, and its end is told again")


def _leftovers(room: Room) -> Iterator[Finding]:
    directories = [room.root]
    for part in (room, evaluations_room(room)):
        directories += [part.attempt(trial, n).path for trial in part.trials() for n in part.attempts(trial)]
        directories += [part.worker(name).path for name in part.workers()]
    for directory in directories:
        for path in stale_scratch(directory):
            yield Finding(
                Damage(path, DamageKind.NO_VALUE, "a killed process left it half-written"),
                "nobody reads it",
                Mend.REMOVE,
            )


def _foreign(directory: Path, own: set[str]) -> Iterator[Finding]:
    """Entries with names that the program does not give, and links that lead out of the directory."""
    try:
        with os.scandir(directory) as entries:
            known = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in known:
        path = Path(entry.path)
        if entry.name not in own or not is_name(entry.name):
            yield Finding(Damage(path, DamageKind.NO_VALUE, "it has no name of this program's"), "nobody reads it")
        elif entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory.parent)):
            yield Finding(
                Damage(path, DamageKind.NO_FILE, "it is a symbolic link out of the room"), "nothing is written there"
            )


def _text(path: Path) -> Damage | None:
    value = read(path, str)
    return value if isinstance(value, Damage) else None


def _missing(path: Path) -> Damage | None:
    return None if os.path.lexists(path) else Damage(path, DamageKind.NO_FILE, "it is gone")


def _finding_of(value: Any, means: str, mend: Mend = Mend.NOTHING) -> Iterator[Finding]:
    if isinstance(value, Damage):
        yield Finding(value, means, mend)


def _lines(path: Path, check: Callable[[str], bool], means: str) -> Iterator[Finding]:
    """The first line of a file that is none of its lines; an incomplete last one does not count."""
    data = read_bytes(path)
    if isinstance(data, Damage):
        yield Finding(data, means)
    if not isinstance(data, bytes):
        return
    bad: list[int] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            fits = check(line.decode())
        except ValueError:
            fits = False
        if not fits:
            bad.append(number)
    if bad:
        more = f", nor can {len(bad) - 1} further lines" if len(bad) > 1 else ""
        damage = Damage(path, DamageKind.NO_VALUE, f"it cannot be read{more}", bad[0])
        yield Finding(damage, means)
