"""What was decided about each trial, and what each decision was based on: the ledger of a sweep, a file in its room.

One line of JSON for each verdict and each promotion, in the order in which they were given. Invariants: the controller
alone writes it, before it acts on what it writes; a line that a crash left torn is cut off by the next controller,
which gives that verdict again; a verdict that is in it already is not written twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.model import SweepState, Verdict
from trainer.room import Room, append_line, cut_torn_line, read_text

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion

PROMOTED = "promote"


@dataclass(frozen=True, slots=True)
class Entry:
    """A decision.

    Args:
        ruling: stop, pause or promote.
        milestone, value: of the trial's last report then; 0 and NaN for a promotion.
        tokens: label tokens that the trial had trained.
        basis: the numbers that the decision was based on.
    """

    trial: int
    ruling: str
    milestone: int
    value: float
    tokens: int
    reason: str
    basis: Mapping[str, float]


class RoomLedger:
    """The ledger of a room, for its one controller."""

    def __init__(self, room: Room) -> None:
        self._path = ledger_path(room)
        cut_torn_line(self._path)
        self._known = {(e.trial, e.ruling, e.milestone) for e in read_ledger(room) if e.ruling != PROMOTED}

    def ruled(self, trial: int, verdict: Verdict, tokens: int) -> None:
        key = (trial, verdict.ruling.value, verdict.milestone)
        if key in self._known:
            return
        entry = Entry(
            trial, verdict.ruling.value, verdict.milestone, verdict.value, tokens, verdict.reason, verdict.basis
        )
        self._write(entry)
        self._known.add(key)

    def promoted(self, promotion: Promotion) -> None:
        self._write(Entry(promotion.trial, PROMOTED, 0, math.nan, 0, promotion.reason, promotion.basis))

    def _write(self, entry: Entry) -> None:
        raw = {name: getattr(entry, name) for name in Entry.__slots__}
        raw["basis"] = dict(entry.basis)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            append_line(file, json.dumps(raw, default=float))


def ledger_path(room: Room) -> Path:
    return room.root / "ledger.jsonl"


def read_ledger(room: Room) -> list[Entry]:
    """All decisions of a sweep, in their order; a line that is being written is left out."""
    text = read_text(ledger_path(room)) or ""
    return [Entry(**raw) for line in text.splitlines() if (raw := _parsed(line)) is not None]


@dataclass(frozen=True, slots=True)
class Account:
    """What a pruner's decisions saved and risked.

    Args:
        saved: label tokens that pruned trials did not train.
        whole: label tokens that all ended trials would have trained.
        ahead: pruned trials that, when they were given up, stood before the winner at the same milestone.
        pauses: how often the winner itself was paused.
    """

    saved: int
    whole: int
    ahead: int
    pauses: int


def account(state: SweepState, entries: Sequence[Entry]) -> Account:
    """Tokens saved, and what was risked, as far as the sweep's own reports can tell."""
    pruned = {row.number: row for row in state.rows if row.state == "pruned"}
    ended = [row for row in state.rows if row.state in ("pruned", "complete")]
    best = state.best
    curve = {r.milestone: getattr(r, state.metric) for r in best.reports} if best else {}
    last = {entry.trial: entry for entry in entries if entry.trial in pruned and entry.ruling != PROMOTED}
    return Account(
        saved=sum(max(0, state.trial_tokens - row.tokens) for row in pruned.values()),
        whole=state.trial_tokens * len(ended),
        ahead=sum(1 for entry in last.values() if entry.value < curve.get(entry.milestone, -math.inf)),
        pauses=sum(1 for entry in entries if best and entry.trial == best.number and entry.ruling == "pause"),
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    return raw if isinstance(raw, dict) and set(raw) == set(Entry.__slots__) else None
