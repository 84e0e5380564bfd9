"""The ledger of a sweep: every decision about a trial, and the numbers that it was based on.

It is the file `ledger.jsonl` in the sweep's room: one line of JSON for each verdict and each promotion, in order.

Invariants: only the controller writes it, and it writes a decision before it acts on it. If a crash leaves a torn
line, the next controller cuts it off and makes that decision again. No verdict is written twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.model.facts import Verdict
from sweep.model.states import Ruling, TrialStatus
from sweep.model.summary import SweepState
from trainer.room import LineFile, Room, cut_torn_line, read_text

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion

PROMOTED = "promote"


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision about a trial.

    Args:
        ruling: stop, pause or promote.
        milestone, value: of the trial's last report at that time; 0 and NaN for a promotion.
        tokens: label tokens that the trial had trained by then.
        basis: the numbers that the decision was based on, by name.
    """

    trial: int
    ruling: str
    milestone: int
    value: float
    tokens: int
    reason: str
    basis: Mapping[str, float]


class NoLedger:
    """A `Ledger` (see `ports`) that records nothing."""

    def add_verdict(self, trial: int, verdict: Verdict, tokens: int) -> None:
        pass

    def add_promotion(self, promotion: Promotion) -> None:
        pass


class RoomLedger:
    """A `Ledger` (see `ports`) in a room, used by the room's one controller."""

    def __init__(self, room: Room) -> None:
        self._path = ledger_path(room)
        cut_torn_line(self._path)
        self._written = {(e.trial, e.ruling, e.milestone) for e in read_ledger(room) if e.ruling != PROMOTED}

    def add_verdict(self, trial: int, verdict: Verdict, tokens: int) -> None:
        key = (trial, verdict.ruling.value, verdict.milestone)
        if key in self._written:
            return
        entry = Entry(
            trial, verdict.ruling.value, verdict.milestone, verdict.value, tokens, verdict.reason, verdict.basis
        )
        self._write(entry)
        self._written.add(key)

    def add_promotion(self, promotion: Promotion) -> None:
        self._write(Entry(promotion.trial, PROMOTED, 0, math.nan, 0, promotion.reason, promotion.basis))

    def _write(self, entry: Entry) -> None:
        raw = {name: getattr(entry, name) for name in Entry.__slots__}
        raw["basis"] = dict(entry.basis)
        with closing(LineFile(self._path)) as file:
            file.append(json.dumps(raw, default=float))


def ledger_path(room: Room) -> Path:
    """The ledger's file, which need not exist."""
    return room.root / "ledger.jsonl"


def read_ledger(room: Room) -> list[Entry]:
    """All decisions of a sweep, in order; an incomplete last line is ignored."""
    text = read_text(ledger_path(room)) or ""
    return [entry for line in text.splitlines() if (entry := _parsed(line)) is not None]


@dataclass(frozen=True, slots=True)
class Account:
    """What a pruner's decisions saved and risked.

    Args:
        saved: label tokens that pruned trials did not train.
        whole: label tokens that all complete and pruned trials would have trained without pruning.
        ahead: pruned trials whose last judged value was better than the best trial's at the same milestone.
        pauses: how often the best trial itself was paused.
    """

    saved: int
    whole: int
    ahead: int
    pauses: int


def account(state: SweepState, entries: Sequence[Entry]) -> Account:
    """What pruning saved and risked, computed from the sweep's own reports and its ledger."""
    pruned = {row.number: row for row in state.rows if row.state is TrialStatus.PRUNED}
    ended = [row for row in state.rows if row.state in (TrialStatus.PRUNED, TrialStatus.COMPLETE)]
    best = state.best
    curve = {r.milestone: state.objective.of(r) for r in best.reports} if best else {}
    minimised = state.objective.minimised
    last = {entry.trial: entry for entry in entries if entry.trial in pruned and entry.ruling != PROMOTED}
    return Account(
        saved=sum(max(0, state.trial_tokens - row.tokens) for row in pruned.values()),
        whole=state.trial_tokens * len(ended),
        ahead=sum(1 for entry in last.values() if minimised(entry.value) < curve.get(entry.milestone, -math.inf)),
        pauses=sum(1 for entry in entries if best and entry.trial == best.number and entry.ruling == Ruling.PAUSE),
    )


def is_entry(line: str) -> bool:
    """Whether a line of the ledger can be read."""
    return _parsed(line) is not None


def _parsed(line: str) -> Entry | None:
    """The entry in a line; None if it is damaged, or a value has another type."""
    try:
        raw: Any = json.loads(line)
        return Entry(
            trial=int(raw["trial"]),
            ruling=str(raw["ruling"]),
            milestone=int(raw["milestone"]),
            value=float(raw["value"]),
            tokens=int(raw["tokens"]),
            reason=str(raw["reason"]),
            basis={str(key): float(value) for key, value in raw["basis"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
