"""`sweep doctor --room`: what is damaged in a room, and its repair."""

from __future__ import annotations

from pathlib import Path

from sweep.errors import ConfigError
from sweep.wiring.room_check import Finding, Mend, check_room
from sweep.wiring.rooms import rooms_dir
from trainer.names import harmless
from trainer.room import Room


def room_doctor(name: str, repair: bool, as_json: bool) -> int:
    """Print what is damaged in a room, and mend it if asked; returns the exit code: 1 if damage is left.

    Args:
        name: of a sweep, or the path of its room, whose `sweep.json` may be damaged too.

    Raises:
        ConfigError: there is no such room. RetryLater: a controller runs the sweep that is to be repaired.
    """
    from sweep.report.formatting import json_text

    room = _room(name)
    done: list[str] = []
    if repair:
        from sweep.wiring.room_repair import repair_room

        for line in repair_room(room):
            done.append(line)
            if not as_json:
                print(harmless(f"repaired: {line}"), flush=True)
    findings = check_room(room)
    notes = [] if findings and not _is_readable(room) else _doubts(room)
    if as_json:
        listed = [
            {
                "path": str(finding.damage.path),
                "line": finding.damage.line,
                "reason": finding.damage.reason,
                "means": finding.means,
                "repair": finding.mend.value,
            }
            for finding in findings
        ]
        print(json_text({"room": str(room.root), "damaged": listed, "doubts": notes, "repaired": done}))
    else:
        _print(room, findings, notes)
    return 1 if findings or notes else 0


def _print(room: Room, findings: list[Finding], notes: list[str]) -> None:
    for finding in findings:
        print(harmless(f"{finding.damage} – {finding.means}"))
    for note in notes:
        print(harmless(note))
    if any(finding.mend is not Mend.NOTHING for finding in findings):
        name = room.root.name
        print(f"`sweep doctor --room {name} --repair` mends what can be mended, and keeps the originals")
    if not findings and not notes:
        print(f"every file of {room.root} can be read")


def _is_readable(room: Room) -> bool:
    """Whether settings and study can be read at all."""
    from sweep.errors import SweepError
    from sweep.report.reader import open_reader

    try:
        open_reader(room)
    except SweepError:
        return False
    return True


def _doubts(room: Room) -> list[str]:
    """Complete trials of which study and files say different things."""
    from sweep.report.reader import open_reader

    reader = open_reader(room)
    reader.state()
    return reader.doubts


def _room(name: str) -> Room:
    for path in (rooms_dir() / name, Path(name)):
        if path.is_dir():
            return Room(path.resolve())
    raise ConfigError(
        f"--room={name}: there is no such directory in {rooms_dir()}; name a sweep, or the path of its room"
    )
