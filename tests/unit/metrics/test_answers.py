"""Questions of several trials are answered part by part, alike whenever and with whomever a trial answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.answers import PART_ROWS, PART_TOKENS, Question, answer_all, write_answers
from trainer.metrics.errors import TRIES
from trainer.metrics.prompts import Row
from trainer.room import AttemptDir
from trainer.sampling import Answer, Prompt, Sampling

GREEDY = Sampling(max_new_tokens=400)
DRAWN = Sampling(max_new_tokens=400, temperature=1.0, seed=5)


def rows(count: int) -> list[Row]:
    return [Row(number, (number + 1,), f"prompt {number}", str(number)) for number in range(count)]


@dataclass
class Trial:
    """Has questions, and is told to stop after some parts."""

    questions: list[Question]
    parts: int = 10**6
    taken: int = 0

    def next_question(self) -> Question | None:
        if self.taken >= self.parts:
            return None
        self.taken += 1
        return next((question for question in self.questions if question.open), None)


@dataclass
class Pack:
    """Answers with what the sampling and the place within the part say, and fails for some trials."""

    broken: Mapping[str, Exception] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)

    def answer(self, requests: Mapping[str, Sequence[Prompt]], how: Sampling) -> dict[str, list[Answer]]:
        self.calls.append(list(requests))
        for name in requests:
            if name in self.broken:
                raise self.broken[name]
        return {
            name: [(how.seed if how.temperature else 0, place, prompt[0]) for place, prompt in enumerate(prompts)]
            for name, prompts in requests.items()
        }


@given(st.integers(1, 300), st.integers(1, 9000), st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_answers_do_not_depend_on_stops_and_on_others(
    count: int, tokens: int, parts: int, others: int, drawn: bool
) -> None:
    how = Sampling(max_new_tokens=tokens, temperature=float(drawn))
    alone, stopped = Question(rows(count), how), Question(rows(count), how)
    answer_all({"a": Trial([alone])}, Pack().answer)
    trials = {"b": Trial([stopped], parts), "c": Trial([Question(rows(others), GREEDY), Question(rows(others), how)])}
    answer_all(trials, Pack().answer)
    assert stopped.open == (len(stopped.answers) < count)
    answer_all({"b": Trial([stopped])}, Pack().answer)
    assert stopped.answers == alone.answers
    assert [answer[2] for answer in alone.answers] == list(range(1, count + 1))
    size = max(1, min(PART_ROWS, PART_TOKENS // tokens))
    assert len({answer[:2] for answer in alone.answers}) == (count if drawn else min(count, size)), "each draws anew"


def test_trials_with_one_sampling_answer_together() -> None:
    pack = Pack()
    trials = {
        "a": Trial([Question(rows(30), GREEDY)]),
        "b": Trial([Question(rows(25), GREEDY)]),
        "c": Trial([Question(rows(2), DRAWN)]),
    }
    answer_all(trials, pack.answer)
    assert pack.calls == [["a", "b"], ["a", "b"], ["c"]]


def test_an_error_ends_the_question_that_it_concerns_after_some_tries() -> None:
    pack = Pack({"b": RuntimeError("a kernel failed")})
    trials = {name: Trial([Question(rows(3), GREEDY)]) for name in "abc"}
    answer_all(trials, pack.answer)
    assert [trials[name].questions[0].problem for name in "ac"] == ["", ""]
    assert [len(trials[name].questions[0].answers) for name in "abc"] == [3, 0, 3]
    assert trials["b"].questions[0].problem == ("the prompts could not be answered: RuntimeError: a kernel failed")
    assert pack.calls == [["a", "b", "c"], ["a"], ["b"], ["c"], *[["b"]] * (TRIES - 1)]
    bad = Pack({"a": ValueError("row 0 has a prompt that is too long")})
    trials = {"a": Trial([Question(rows(3), GREEDY)])}
    answer_all(trials, bad.answer)
    assert len(bad.calls) == 1, "another try cannot help"


def test_no_memory_is_raised_once_a_trial_has_none_by_itself() -> None:
    pack = Pack({"b": torch.OutOfMemoryError("CUDA out of memory")})
    trials = {name: Trial([Question(rows(3), GREEDY)]) for name in "ab"}
    with pytest.raises(torch.OutOfMemoryError):
        answer_all(trials, pack.answer)
    assert len(trials["a"].questions[0].answers) == 3


def test_the_time_begins_with_the_first_part() -> None:
    question = Question(rows(3), GREEDY, seconds=2)
    for now in (100.0, 102.0):
        question.check_time(now)
        assert question.open
    question.take([(1,)])
    question.check_time(102.1)
    assert question.problem == "it timed out after 2 s, with 1 of 3 rows answered"
    assert not question.open


def test_answers_are_written_whole_whatever_their_characters(tmp_path: Path) -> None:
    files = AttemptDir(tmp_path)
    write_answers(files, "a/b: ü", 3, rows(2), ["\u2028 x\n", "ü \ud800"], [1.0, 0.5])
    (path,) = (tmp_path / "answers").iterdir()
    assert path == files.answers_of("a/b: ü", 3)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert lines[0] == {"row": 0, "prompt": "prompt 0", "answer": "\u2028 x\n", "reference": "0", "score": 1.0}
    assert (lines[1]["answer"], lines[1]["score"]) == ("ü \ud800", 0.5)
