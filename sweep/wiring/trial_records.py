"""What the files of a sweep's trials tell of them, for a study that lost its journal.

Invariant: nothing is written, and nothing is guessed. The rules by which a trial has ended are those of the controller
(`sweep.controller.endings`); where its files leave a doubt, the trial counts as open, and the controller decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.config.settings import Settings
from sweep.config.space import Choice, Domain, Space, contains, label
from sweep.config.torchtune import seed_of_final, value_at
from sweep.controller.ledger import PROMOTED, Entry, read_ledger
from sweep.model.states import Ending, Ruling
from sweep.search.rebuild import Ended, TrialRecord
from trainer.components import current_path
from trainer.contract import (
    ContractError,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    TrialSpec,
    decode,
    read_message,
    read_stop,
)
from trainer.room import Room, Tail, usable


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The whole files of one attempt; None for those that are absent or damaged."""

    spec: TrialSpec | None
    outcome: Outcome | None
    stop: StopCause | None
    reports: Sequence[Report]
    ended_at: float


def trial_records(room: Room, settings: Settings) -> list[TrialRecord]:
    """What the files of each trial tell, by number."""
    entries: dict[int, list[Entry]] = {}
    for entry in read_ledger(room):
        entries.setdefault(entry.trial, []).append(entry)
    records: list[TrialRecord] = []
    for number in room.trials():
        attempts = [_attempt(room, number, attempt) for attempt in room.attempts(number)]
        if attempts:
            records.append(_record(settings, number, attempts, entries.get(number, []), records))
    return records


def _attempt(room: Room, trial: int, number: int) -> _Attempt:
    files = room.attempt(trial, number)
    stop = usable(read_stop(files.stop))
    reports = []
    for line in Tail(files.reports).lines(files.counted()):
        try:
            reports.append(decode(Report, line))
        except ContractError:
            continue
    return _Attempt(
        spec=usable(read_message(TrialSpec, files.spec)),
        outcome=usable(read_message(Outcome, files.outcome)),
        stop=stop[0] if stop is not None else None,
        reports=reports,
        ended_at=files.outcome.stat().st_mtime if files.outcome.exists() else 0.0,
    )


def _record(
    settings: Settings,
    number: int,
    attempts: Sequence[_Attempt],
    entries: Sequence[Entry],
    earlier: Sequence[TrialRecord],
) -> TrialRecord:
    spec = next((attempt.spec for attempt in reversed(attempts) if attempt.spec is not None), None)
    params = None if spec is None else params_of(settings.space, spec.config)
    final = None if spec is None else _final(settings, spec.config, params, earlier)
    merged = {report.milestone: report for attempt in attempts for report in attempt.reports}
    reports = [merged[milestone] for milestone in sorted(merged)]
    ended = _ended(settings.metric, attempts, reports, entries)
    values = _values(settings.metric, reports)
    last = _last_counted(attempts, entries, is_open=ended is None)
    return TrialRecord(
        number=number,
        params=params,
        values={milestone: value for milestone, value in values.items() if milestone <= last},
        tokens=reports[-1].tokens if reports else 0,
        seconds=sum(_seconds(attempt) for attempt in attempts),
        ended=ended,
        final=final,
        promoted_at=_promoted_at(entries),
    )


def _last_counted(attempts: Sequence[_Attempt], entries: Sequence[Entry], is_open: bool) -> float:
    """The milestone of the last report that the study counts. A controller reads those of an open trial again, and does
    not count those that came after a verdict."""
    stops = [entry.milestone for entry in entries if entry.ruling == Ruling.STOP]
    if stops:
        return stops[0]
    pauses = [entry.milestone for entry in entries if entry.ruling == Ruling.PAUSE]
    if not is_open or (not pauses and attempts[-1].stop is StopCause.PAUSED):
        return math.inf
    return max(pauses, default=0)


def params_of(space: Space, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The hyperparameters of a trial in the configuration that it was trained with; None if they are not all there."""
    params: dict[str, Any] = {}
    for parameter in space:
        if not parameter.exists(params):
            continue
        try:
            raw = config[parameter.key] if parameter.key in config else value_at(config, parameter.key)
        except KeyError:
            return None
        own = _own(parameter.domain, raw)
        if not own:
            return None
        params[parameter.key] = own[0]
    return params


def _own(domain: Domain, value: Any) -> list[Any]:
    """The value of a domain that a configuration holds; nothing if it holds none."""
    if isinstance(domain, Choice):
        return [own for own in domain.values if label(own) == label(value) or _is_moved(own, value)][:1]
    return [value] if contains(domain, value) else []


def _is_moved(own: Any, value: Any) -> bool:
    """Whether a choice is the old name of a component that a configuration has by its new one."""
    return isinstance(own, str) and isinstance(value, str) and current_path(own) == value


def _final(
    settings: Settings, config: Mapping[str, Any], params: Mapping[str, Any] | None, earlier: Sequence[TrialRecord]
) -> tuple[int, int] | None:
    """The number of the trial that a final repeats, and the index of its seed; None if it is none."""
    seed, base = config.get("seed"), settings.torchtune.get("seed")
    base = settings.search.seed if base is None else base
    if type(seed) is not int or type(base) is not int or seed == base or "seed" in settings.space or params is None:
        return None
    repeated = next((r.number for r in earlier if r.final is None and r.params == params), None)
    seeds = [index for index in range(settings.search.seeds) if seed_of_final(base, index) == seed]
    return None if repeated is None or not seeds else (repeated, seeds[0])


def _ended(
    metric: str, attempts: Sequence[_Attempt], reports: Sequence[Report], entries: Sequence[Entry]
) -> Ended | None:
    """How a trial ended; None if it is open, or its files leave a doubt."""
    last = attempts[-1]
    outcome, at = last.outcome, last.ended_at
    if outcome is None:
        return None
    stopped = [entry.reason for entry in entries if entry.ruling == Ruling.STOP]
    pruned = bool(stopped) or any(attempt.stop is StopCause.PRUNED for attempt in attempts)
    reason = stopped[0] if stopped else outcome.reason
    match outcome.kind:
        case OutcomeKind.DIVERGED:
            return Ended(Ending.PRUNED, f"diverged: {outcome.reason}", at=at)
        case OutcomeKind.STOPPED if outcome.cause is StopCause.CANCELLED:
            return Ended(Ending.FAIL, outcome.reason, cancelled=True, at=at)
        case OutcomeKind.FAILED if not outcome.resumable:
            return Ended(Ending.FAIL, outcome.reason, at=at)
        case OutcomeKind.STOPPED if outcome.cause is StopCause.PRUNED:
            return Ended(Ending.PRUNED, reason, at=at)
        case OutcomeKind.COMPLETED if pruned:
            return Ended(Ending.PRUNED, reason, at=at)
        case OutcomeKind.COMPLETED if not _is_paused(last, entries) and reports and reports[-1].final:
            value = reports[-1].value(metric)
            if math.isfinite(value):
                return Ended(Ending.COMPLETE, outcome.reason, value, at=at)
    return None


def _is_paused(last: _Attempt, entries: Sequence[Entry]) -> bool:
    """Whether a pause stands: the attempt was quicker than its stop."""
    return last.stop is StopCause.PAUSED or bool(entries and entries[-1].ruling == Ruling.PAUSE)


def _promoted_at(entries: Sequence[Entry]) -> int | None:
    """The milestone of the last pause that a promotion ended."""
    paused, promoted = None, None
    for entry in entries:
        if entry.ruling == Ruling.PAUSE:
            paused = entry.milestone
        elif entry.ruling == PROMOTED and paused is not None:
            promoted = paused
    return promoted


def _values(metric: str, reports: Sequence[Report]) -> dict[int, float]:
    values = {report.milestone: report.value(metric) for report in reports}
    return {milestone: value for milestone, value in values.items() if math.isfinite(value)}


def _seconds(attempt: _Attempt) -> float:
    if attempt.outcome is not None:
        return attempt.outcome.seconds
    return attempt.reports[-1].seconds if attempt.reports else 0.0
