"""Answers of a trial to the prompts of a metric, beside the references and what the base answered.

Invariants: nothing is written. A file in a room may be damaged, or somebody else's: what cannot be read is left out, a
text is cut, and at most `MOST_BYTES` of a file are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from trainer.room import Room, read_bytes
from trainer.shortening import short_text

# Rows that are shown of each metric.
SHOWN = 6
LONGEST = 600
# Characters with which all prompts begin, from which on they are left out.
SHARED = 40
MOST_BYTES = 4_000_000
# The milestone under which the answers of the base stand.
BASE = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Args:
        score: None if the file has no number.
        base: what the base answered to the same prompt; empty if that is not known.
    """

    row: int
    prompt: str
    reference: str
    answer: str
    score: float | None
    base: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """Some answers of a trial to the prompts of a metric.

    Args:
        milestone: at which they were given.
        count: of all that were given.
    """

    metric: str
    trial: int
    milestone: int
    count: int
    rows: Sequence[Answer]


def answers_of(room: Room, trial: int, metrics: Sequence[str]) -> list[Answers]:
    """The newest answers of a trial for each of these metrics that has some: right and wrong ones, by row."""
    shown = []
    for metric in metrics:
        milestone, path = _newest(room, trial, metric)
        if path is None:
            continue
        rows = _read(path)
        base = _read(_of_base(room, metric))
        if rows:
            chosen = [_with_base(answer, base) for answer in _chosen(_without_shared(list(rows.values())))]
            shown.append(Answers(metric, trial, milestone, len(rows), chosen))
    return shown


def _newest(room: Room, trial: int, metric: str) -> tuple[int, Path | None]:
    """The file of the highest milestone over all attempts of a trial."""
    newest: tuple[int, Path | None] = (BASE, None)
    for attempt in room.attempts(trial):
        for milestone, path in _files(room, trial, attempt, metric):
            if milestone != BASE and milestone >= newest[0]:
                newest = (milestone, path)
    return newest


def _of_base(room: Room, metric: str) -> Path | None:
    """The answers of the base, which one trial's directory has."""
    for trial in room.trials()[:8]:
        for attempt in room.attempts(trial):
            for milestone, path in _files(room, trial, attempt, metric):
                if milestone == BASE:
                    return path
    return None


def _files(room: Room, trial: int, attempt: int, metric: str) -> list[tuple[int, Path]]:
    folder = room.attempt(trial, attempt).path / "answers"
    name = re.compile(rf"{re.escape(metric)}\.(\d{{1,9}})\.jsonl")
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [(int(match[1]), path) for path in paths if (match := name.fullmatch(path.name))]


def _read(path: Path | None) -> dict[int, Answer]:
    """The answers in a file by row; none if it cannot be read."""
    try:
        data = None if path is None else read_bytes(path, MOST_BYTES)
    except OSError:
        return {}
    if not isinstance(data, bytes):
        return {}
    answers = (_answer(line) for line in data.decode("utf-8", errors="replace").splitlines())
    return {answer.row: answer for answer in answers if answer is not None}


def _answer(line: str) -> Answer | None:
    try:
        raw: Any = json.loads(line)
        score = raw.get("score")
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        prompt, reference, answer = (_text(raw.get(key)) for key in ("prompt", "reference", "answer"))
        return Answer(int(raw["row"]), prompt, reference, answer, float(score) if is_number else None)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return short_text(" | ".join(map(str, value)), LONGEST)
    return "" if value is None else short_text(str(value), LONGEST)


def _without_shared(answers: Sequence[Answer]) -> list[Answer]:
    """The answers without the words with which all prompts begin, such as those of Alpaca's template."""
    prompts = [answer.prompt for answer in answers if answer.prompt]
    first, last = min(prompts, default=""), max(prompts, default="")  # what these two share, all between them do
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = "".join(letter for letter, _ in equal) if first != last else ""
    shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
    if len(shared) < SHARED:
        return list(answers)
    return [
        replace(answer, prompt=f"… {answer.prompt[len(shared) :]}") if answer.prompt else answer for answer in answers
    ]


def _chosen(answers: Sequence[Answer]) -> list[Answer]:
    """The best-scored half of what is shown and the worst-scored other half, by row."""
    by_score = sorted(answers, key=lambda answer: (-(answer.score or 0.0), answer.row))
    chosen = {answer.row: answer for answer in (*by_score[: SHOWN // 2], *by_score[-(SHOWN - SHOWN // 2) :])}
    return [chosen[row] for row in sorted(chosen)]


def _with_base(answer: Answer, base: dict[int, Answer]) -> Answer:
    other = base.get(answer.row)
    return answer if other is None else replace(answer, base=other.answer)
