"""Questions to a trial, the answers to them, and the files in which a person reads these.

Invariants: questions are put in parts of a size that depends on the sampling only, so that a draw does not depend on
when or with whom a trial answers. Between two parts a stop is obeyed. A question that fails ends no other one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch

from trainer.contract import FailureKind
from trainer.failures import classify, describe
from trainer.metrics.errors import TRIES
from trainer.metrics.prompts import Row
from trainer.room import AttemptDir, write_atomic
from trainer.sampling import Answer, Prompt, Sampling
from trainer.space import with_space

_log = logging.getLogger(__name__)

# New tokens of a part, in all its rows together, and the most rows of a part.
PART_TOKENS = 8192
PART_ROWS = 64


@dataclass(slots=True)
class Question:
    """The prompts of a trial that are answered in one way, for all metrics that need the answers.

    Args:
        seconds: within which all must be answered; None: no limit.
        answers: those so far, in the order of the rows.
        problem: why there are no more; empty: there are more, or all are there.
    """

    rows: Sequence[Row]
    sampling: Sampling
    seconds: float | None = None
    answers: list[Answer] = field(default_factory=list)
    problem: str = ""
    _failed: int = 0
    _deadline: float | None = None

    @property
    def open(self) -> bool:
        """Whether an answer is still to come."""
        return not self.problem and len(self.answers) < len(self.rows)

    def part(self) -> tuple[list[Prompt], Sampling]:
        """The next prompts, and how to answer them: random draws differ from those of other parts."""
        begin = len(self.answers)
        count = max(1, min(PART_ROWS, PART_TOKENS // self.sampling.max_new_tokens))
        drawn = begin if self.sampling.temperature else 0
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + (drawn << 32))
        return [row.prompt for row in self.rows[begin : begin + count]], sampling

    def take(self, answers: Sequence[Answer]) -> None:
        """Take the answers to `part`."""
        self.answers += answers

    def check_time(self, now: float) -> None:
        """Give up if the time is over; the time begins with the first call."""
        if self.seconds is None:
            return
        if self._deadline is None:
            self._deadline = now + self.seconds
        if now > self._deadline:
            done = f"{len(self.answers)} of {len(self.rows)} rows"
            self.problem = f"it timed out after {self.seconds:g} s, with {done} answered"

    def fail(self, error: Exception) -> None:
        """Count an error; after some, or one that another try cannot repair, give up."""
        self._failed += 1
        kind = classify(error)
        if self._failed >= TRIES or kind is FailureKind.BAD_CONFIG:
            self.problem = f"the prompts could not be answered: {describe(error)}"


class Asker(Protocol):
    """A trial that may have questions."""

    def next_question(self) -> Question | None:
        """The question whose next part is to be answered now; None: there is none, or a stop must be obeyed first."""


A = TypeVar("A", bound=Hashable)
AnswerAll = Callable[[Mapping[A, Sequence[Prompt]], Sampling], Mapping[A, Sequence[Answer]]]


def answer_all(askers: Mapping[A, Asker], answer: AnswerAll[A]) -> None:
    """Answer the questions of several trials together, part by part.

    Args:
        answer: answers prompts of several trials with one sampling, in order.

    Raises:
        OutOfMemoryError: there is no memory even for the prompts of one trial.
    """
    while open_questions := {key: question for key, asker in askers.items() if (question := asker.next_question())}:
        parts = {key: question.part() for key, question in open_questions.items()}
        sampling = next(iter(parts.values()))[1]
        alike = {key: prompts for key, (prompts, how) in parts.items() if how == sampling}
        _answer_part({key: open_questions[key] for key in alike}, alike, sampling, answer)


def _answer_part(
    questions: Mapping[A, Question], prompts: Mapping[A, Sequence[Prompt]], sampling: Sampling, answer: AnswerAll[A]
) -> None:
    """Answer a part of each of these questions; if that fails, of one after the other."""
    try:
        answers = answer(prompts, sampling)
    except Exception as error:
        if len(questions) == 1:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            next(iter(questions.values())).fail(error)
            return
        failure = error
    else:
        for key, question in questions.items():
            question.take(answers[key])
        return
    _log.warning("%d trials answer one after another: %s", len(questions), describe(failure))
    failure.__traceback__ = None  # its frames hold what the answers needed
    torch.cuda.empty_cache()
    for key, question in questions.items():
        _answer_part({key: question}, {key: prompts[key]}, sampling, answer)


def write_answers(
    files: AttemptDir, name: str, milestone: int, rows: Sequence[Row], answers: Sequence[str], scores: Sequence[float]
) -> None:
    """Write the answers of a metric at a milestone as JSON lines with row, prompt, answer, reference and score."""
    lines = [
        json.dumps(
            {"row": row.number, "prompt": row.text, "answer": answer, "reference": row.reference, "score": score},
            ensure_ascii=False,
        )
        for row, answer, score in zip(rows, answers, scores, strict=True)
    ]
    data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")  # half of a pair, as JSON has it

    def write() -> None:
        files.answers.mkdir(exist_ok=True)
        write_atomic(files.answers_of(name, milestone), data, root=files.path)

    with_space(write, "the answers")
