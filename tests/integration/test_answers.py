"""Trials answer prompts at their milestones; alone and in a pack, and they train as if they did not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import embedded_config
from tests.helpers.attempts import Stops, reports, run, spec, steps
from tests.helpers.schedulers import Hands
from trainer import generation
from trainer.base import Cache
from trainer.contract import (
    FailureKind,
    Metric,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.data import build_dataset, build_tokenizer
from trainer.metrics import answers as asked
from trainer.metrics import measure
from trainer.metrics.errors import MetricError
from trainer.metrics.prompts import choose_rows, longest_prompt, read_rows
from trainer.metrics.scorers import f1
from trainer.metrics.texts import text_of
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe
from trainer.room import Room, Tail, write_atomic
from trainer.sampling import Prompt, Sampling
from trainer.worker import Worker

pytestmark = pytest.mark.slow

# Three micro-batches; the second ends at the first milestone, the third is the end.
SMALL: dict[str, Any] = {"dataset__split": "train[:12]", "dataset_val__split": "train[:8]"}
TOKENS = 90
ASKS = {"rows": 6, "max_new_tokens": 6, "score": "f1"}
F1 = Metric("f1", "generate", ASKS)
EXACT = Metric("exact", "generate", {**ASKS, "score": "exact_match"}, every=2)


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def small(attempt: int = 1, metrics: Sequence[Metric] = (), base: bool = False, **changes: Any) -> TrialSpec:
    wanted = spec(attempt, **SMALL, **changes)
    return replace(wanted, metrics=tuple(metrics), measure_base=base, milestone_tokens=TOKENS)


def numbers(of: list[Report]) -> list[tuple[Any, ...]]:
    return [(r.milestone, r.tokens, r.loss, repr(r.grad_norm), r.val_loss, r.lr, r.final) for r in of]  # may be NaN


def answers(room: Room, name: str, milestone: int, trial: int = 0, attempt: int = 1) -> list[dict[str, Any]]:
    path = room.attempt(trial, attempt).answers_of(name, milestone)
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- prompts ---------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Any:
    return OmegaConf.create(embedded_config(**{**SMALL, **changes}))


@pytest.mark.parametrize("change", [{}, {"dataset_val__train_on_input": True}, {"dataset_val__packed": True}])
def test_a_prompt_is_what_stands_before_the_answer_in_training(change: dict[str, Any], cache: Cache) -> None:
    cfg, plain = config(**change), config()
    dataset, tokenizer = build_dataset(plain.dataset_val, plain, cache, "dataset_val"), build_tokenizer(cfg, cache)
    rows = list(read_rows(cfg, {}, [], cache, "metric.m"))
    assert [row.number for row in rows] == list(range(8))
    for row in rows:
        sample, raw = dataset[row.number], dataset._data[row.number]
        tokens = list(map(int, sample["tokens"]))
        assert tuple(tokens[: len(row.prompt)]) == row.prompt
        assert text_of(tokenizer, tokens[len(row.prompt) :]).strip() == row.reference == raw["output"]
        labels = [int(label) for label in sample["labels"]]
        assert len(row.prompt) > next(index for index, label in enumerate(labels) if label != -100), (
            "the turn has begun"
        )
        assert raw["instruction"] in row.text
        assert raw["output"] not in row.text


def test_rows_of_other_data(cache: Cache, tmp_path: Path) -> None:
    cfg = config()
    file = tmp_path / "rows.jsonl"
    lines = [
        {"question": "What is 1 + 1?", "gold": 2},
        {"question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]},
        {"question": "x\u2028y", "gold": ["a", 1.5]},
    ]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    options = {"data": str(file), "prompt": "question", "reference": "gold"}
    rows = list(read_rows(cfg, options, [], cache, "metric.m"))
    assert [row.reference for row in rows] == ["2", None, ["a", "1.5"]]
    assert [row.text for row in rows] == ["What is 1 + 1?", "Be brief.\n\n1 + 2?", "x\u2028y"]
    tokenizer = build_tokenizer(cfg, cache)
    assert tokenizer.decode(list(rows[0].prompt), skip_special_tokens=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    one = {**embedded_config(**SMALL)["dataset_val"], "split": "train[:3]"}
    several = list(read_rows(cfg, {"data": [one, {**one, "split": "train[3:5]"}]}, [], cache, "metric.m"))
    whole = list(read_rows(cfg, {}, [], cache, "metric.m"))
    assert several == whole[:5]
    assert choose_rows(whole, 3, 10_000, "m") == whole[:3]
    shortest = min(len(row.prompt) for row in whole)
    assert {len(row.prompt) for row in choose_rows(whole, 8, shortest, "m")} == {shortest}
    with pytest.raises(MetricError, match="m: none of 8 rows has a prompt that leaves space for an answer"):
        choose_rows(whole, 8, shortest - 1, "m")
    assert longest_prompt(tokenizer, 512, 12) == min(500, tokenizer.max_seq_len - 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 has no prompt; name the column of the prompts"),
        ('{"prompt": 3}', "line 2 has a prompt that is neither a text nor a list of messages"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "system, user or assistant as role"),
        ('{"prompt": "x", "reference": {"a": 1}}', "line 2 has a reference that is neither a text nor a number"),
    ],
)
def test_a_line_that_is_no_row(line: str, words: str, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(MetricError, match=words):
        list(read_rows(config(), {"data": str(tmp_path / "rows.jsonl")}, [], cache, "metric.m"))


# --- trials ----------------------------------------------------------------------------------------------------------


def test_a_trial_answers_and_trains_on_as_if_it_did_not(cache: Cache, tmp_path: Path) -> None:
    plain, room = Room(tmp_path / "plain"), Room(tmp_path / "answers")
    dropout: dict[str, Any] = {"model__lora_dropout": 0.1, "gradient_accumulation_steps": 3}
    run(plain, cache, small(**dropout))
    sampled = Metric("sampled", "generate", {**ASKS, "temperature": 1.0, "seed": 3})
    outcome = run(room, cache, small(metrics=[F1, EXACT, sampled], base=True, **dropout))
    assert outcome.kind is OutcomeKind.COMPLETED
    assert steps(room) == steps(plain)
    seen = reports(room)
    assert numbers(seen) == numbers(reports(plain))
    assert [set(report.scores) - {"f1", "sampled"} for report in seen] == [set(), {"exact"}]
    assert [set(report.base_scores) for report in seen] == [{"f1", "exact", "sampled"}, set()]
    for milestone, score in [(0, seen[0].base_scores["f1"]), (1, seen[0].scores["f1"]), (2, seen[1].scores["f1"])]:
        rows = answers(room, "f1", milestone)
        assert [set(row) for row in rows] == [{"row", "prompt", "answer", "reference", "score"}] * 6
        assert [row["score"] for row in rows] == [f1(row["answer"], row["reference"]) for row in rows]
        assert score == pytest.approx(sum(row["score"] for row in rows) / 6)
    assert [row["answer"] for row in answers(room, "f1", 2)] == [row["answer"] for row in answers(room, "exact", 2)]
    assert [row["answer"] for row in answers(room, "f1", 2)] != [row["answer"] for row in answers(room, "sampled", 2)]


def test_metrics_with_the_same_prompts_share_their_answers(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = generation.answer_alone, list[int]()

    def counted(recipe: LoraRecipe, prompts: Sequence[Prompt], sampling: Sampling) -> Any:
        calls.append(len(prompts))
        return real(recipe, prompts, sampling)

    monkeypatch.setattr(measure, "answer_alone", counted)
    run(Room(tmp_path), cache, small(metrics=[F1, EXACT]))
    assert calls == [6, 6]


def of_trial(room: Room, trial: int) -> tuple[list[Report], list[str]]:
    files = room.attempt(trial, 1)
    return [decode(Report, line) for line in Tail(files.reports).lines()], Tail(files.steps).lines()


def test_the_slots_that_are_due_answer_together_with_each_trial_s_own_answers(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[int, dict[str, Any]] = {0: SMALL, 1: {**SMALL, "model__lora_rank": 4, "model__lora_dropout": 0.1}}
    real, together = Pack.answer, list[int]()

    def counted(self: Pack, requests: Any, sampling: Sampling) -> Any:
        together.append(len(requests))
        return real(self, requests, sampling)

    monkeypatch.setattr(Pack, "answer", counted)
    rooms = {}
    for name, metrics in (("plain", ()), ("answers", (F1, EXACT))):
        hands = Hands(Room(tmp_path / name), cache, 2)
        for trial, change in changes.items():
            hands.give(trial, metrics=metrics, milestone_tokens=TOKENS, **change)
        hands.finish()
        assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}
        rooms[name] = hands.room
    assert together == [2, 2], "both fall on the same micro-batches"
    for trial in changes:
        (plain, plain_steps), (seen, seen_steps) = of_trial(rooms["plain"], trial), of_trial(rooms["answers"], trial)
        assert numbers(seen) == numbers(plain)
        assert seen_steps == plain_steps
    alone = Room(tmp_path / "alone")
    run(alone, cache, replace(spec(**changes[1]), metrics=(F1, EXACT), milestone_tokens=TOKENS))
    assert [report.scores for report in seen] == [report.scores for report in reports(alone)]
    assert answers(rooms["answers"], "f1", 2, 1) == answers(alone, "f1", 2)


def test_a_slot_that_cannot_answer_has_the_problem_alone(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pack.answer

    def broken(self: Pack, requests: Any, sampling: Sampling) -> Any:
        if any(slot.recipe.cfg.seed == 7 for slot in requests):
            raise RuntimeError("a kernel of another kind")
        return real(self, requests, sampling)

    monkeypatch.setattr(Pack, "answer", broken)
    hands = Hands(Room(tmp_path), cache, 2)
    hands.give(0, metrics=(F1,), milestone_tokens=TOKENS, **SMALL)
    hands.give(1, metrics=(F1,), milestone_tokens=TOKENS, seed=7, **SMALL)
    hands.finish()
    first, second = of_trial(hands.room, 0)[0], of_trial(hands.room, 1)[0]
    assert hands.ended[0].kind is OutcomeKind.COMPLETED
    assert [set(report.scores) for report in first] == [{"f1"}, {"f1"}]
    assert [dict(report.problems) for report in second] == [
        {"f1": "the prompts could not be answered: RuntimeError: a kernel of another kind"}
    ]
    assert (hands.ended[1].kind, hands.ended[1].failure) == (OutcomeKind.FAILED, FailureKind.PASSING)
    assert "f1 could not be measured at the end of the trial: the prompts could not" in hands.ended[1].reason


# --- stops, retries, memory ------------------------------------------------------------------------------------------


class Answered:
    """Counts prompts that were answered, and asks for a stop after some parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
        self.rows: list[Prompt] = []
        self.parts = 0
        self.stop_at = 0
        real = generation.answer_alone

        def counted(recipe: LoraRecipe, prompts: Sequence[Prompt], sampling: Sampling) -> Any:
            self.rows += prompts
            self.parts += 1
            return real(recipe, prompts, sampling)

        monkeypatch.setattr(measure, "answer_alone", counted)
        monkeypatch.setattr(asked, "PART_ROWS", part)

    @property
    def stops(self) -> Stops:
        return lambda: (StopCause.PREEMPTED, "its node is needed") if 0 < self.stop_at <= self.parts else None


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """That of a trial which was not stopped."""
    room = Room(tmp_path_factory.mktemp("whole"))
    run(room, cache, small(metrics=[F1, EXACT], base=True))
    return room


@pytest.mark.parametrize(("stop_at", "told"), [(2, 0), (5, 0), (9, 1)], ids=["base", "first", "final"])
def test_a_stop_during_a_measurement_loses_nothing_and_tells_nothing_twice(
    stop_at: int, told: int, whole: Room, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts of two rows each for the base, the first report and the final one."""
    room = Room(tmp_path)
    answered = Answered(monkeypatch, part=2)
    answered.stop_at = stop_at
    stopped = run(room, cache, small(metrics=[F1, EXACT], base=True), answered.stops)
    assert (stopped.kind, stopped.cause) == (OutcomeKind.STOPPED, StopCause.PREEMPTED)
    assert answered.parts == stop_at
    assert len(reports(room)) == told
    answered.stop_at = 0
    resumed = run(room, cache, small(2, metrics=[F1, EXACT], base=True), answered.stops)
    assert (resumed.kind, resumed.resumed_from) == (OutcomeKind.COMPLETED, 1)
    assert answered.parts == 9, "no prompt was answered twice"
    assert len(answered.rows) == 18
    both = reports(room) + reports(room, 2)
    assert numbers(both) == numbers(reports(whole))
    assert [(r.scores, r.base_scores) for r in both] == [(r.scores, r.base_scores) for r in reports(whole)]
    assert steps(room) + steps(room, 2) == steps(whole)


def test_a_stopped_slot_leaves_and_the_others_answer_on(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "PART_ROWS", 2)
    real, calls = Pack.answer, list[int]()

    def counted(self: Pack, requests: Any, sampling: Sampling) -> Any:
        calls.append(len(requests))
        return real(self, requests, sampling)

    monkeypatch.setattr(Pack, "answer", counted)
    hands = Hands(Room(tmp_path), cache, 2)
    hands.give(
        0, lambda: (StopCause.PAUSED, "wait") if calls else None, metrics=(F1,), milestone_tokens=TOKENS, **SMALL
    )
    hands.give(1, metrics=(F1,), milestone_tokens=TOKENS, **SMALL)
    hands.finish()
    assert calls == [2, 1, 1, 1, 1, 1]
    assert (hands.ended[0].cause, hands.ended[1].kind) == (StopCause.PAUSED, OutcomeKind.COMPLETED)
    assert of_trial(hands.room, 0)[0] == []
    hands.ended.clear()
    hands.give(0, attempt=2, metrics=(F1,), milestone_tokens=TOKENS, **SMALL)
    hands.finish()
    again = [decode(Report, line) for line in Tail(hands.room.attempt(0, 2).reports).lines()]
    assert hands.ended[0].resumed_from == 1
    assert numbers(again) == numbers(of_trial(hands.room, 1)[0])


def test_a_worker_that_must_end_while_its_trials_answer_hands_them_over(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM within the first common part of two trials; another worker completes both."""
    monkeypatch.setattr(asked, "PART_ROWS", 2)
    real, prompts = Pack.answer, list[int]()

    def signalled(self: Pack, requests: Any, sampling: Sampling) -> Any:
        if not prompts:
            os.kill(os.getpid(), signal.SIGTERM)
        prompts.append(sum(map(len, requests.values())))
        return real(self, requests, sampling)

    monkeypatch.setattr(Pack, "answer", signalled)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    room = Room(tmp_path)
    try:
        for attempt, worker in ((1, "w0001"), (2, "w0002")):
            for trial in range(2):
                write_atomic(room.attempt(trial, attempt).spec, encode(replace(small(attempt, [F1]), trial=trial)))
                room.worker(worker).assign(trial, attempt)
            write_atomic(room.worker(worker).drain, "")
            Worker(room, worker, slots=2, _cache=cache).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for trial in range(2):
        first, second = (decode(Outcome, room.attempt(trial, attempt).outcome.read_text()) for attempt in (1, 2))
        assert (first.kind, first.cause) == (OutcomeKind.STOPPED, StopCause.PREEMPTED)
        assert (second.kind, second.resumed_from) == (OutcomeKind.COMPLETED, 1)
        told = [
            decode(Report, line) for attempt in (1, 2) for line in Tail(room.attempt(trial, attempt).reports).lines()
        ]
        assert [(report.milestone, set(report.scores)) for report in told] == [(1, {"f1"}), (2, {"f1"})]
        assert len(answers(room, "f1", 1, trial, 2)) == 6


FUNCTION = """
import os
calls = []
def judge(answer, reference):
    calls.append(answer)
    if os.environ.get("JUDGE") == "down":
        raise ConnectionError("no judge answers")
    return 1 if "a" in answer else 0
def draws(answer, reference):
    import random, torch, numpy
    return random.random() + float(torch.rand(())) + numpy.random.rand()
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "judge_of_test.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("JUDGE", raising=False)
    return "judge_of_test"


def test_a_metric_that_fails_at_the_end_is_measured_by_the_next_attempt(
    judge: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Metric("judged", "generate", {**ASKS, "score": f"{judge}:judge"})
    trusted = replace(small(metrics=[metric, F1]), components=(judge,))
    room = Room(tmp_path / "room")
    monkeypatch.setenv("JUDGE", "down")
    outcome = run(room, cache, trusted)
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, FailureKind.PASSING)
    reason = (
        "judged could not be measured at the end of the trial: judge_of_test:judge raised ConnectionError: no judge"
    )
    assert outcome.reason.startswith(reason)
    (first,) = reports(room)
    assert set(first.scores) == {"f1"}
    assert first.problems["judged"].startswith("judge_of_test:judge raised ConnectionError")
    monkeypatch.setenv("JUDGE", "up")
    monkeypatch.setattr(measure, "answer_alone", None)  # the answers are in the checkpoint
    again = run(room, cache, replace(trusted, attempt=2))
    assert (again.kind, again.resumed_from) == (OutcomeKind.COMPLETED, 1)
    (final,) = reports(room, 2)
    assert final.final
    assert set(final.scores) == {"judged", "f1"}
    assert steps(room, 2) == []


def test_what_a_user_s_function_draws_is_drawn_by_no_training(judge: str, cache: Cache, tmp_path: Path) -> None:
    dropout: dict[str, Any] = {"model__lora_dropout": 0.1}
    metric = Metric("drawn", "generate", {**ASKS, "score": f"{judge}:draws"})
    plain, room = Room(tmp_path / "plain"), Room(tmp_path / "room")
    run(plain, cache, small(**dropout))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert run(room, cache, replace(small(metrics=[metric], **dropout), components=(judge,))).kind == "completed"
    assert steps(room) == steps(plain)


def test_what_cannot_be_measured_is_refused_before_the_trial_trains(cache: Cache, tmp_path: Path) -> None:
    room = Room(tmp_path)
    outcome = run(room, cache, small(metrics=[Metric("m", "generate", {**ASKS, "score": "nowhere:f"})]))
    assert (outcome.kind, outcome.failure, outcome.step) == (OutcomeKind.FAILED, FailureKind.BAD_CONFIG, 0)
    assert "metric.m.score=nowhere.f is not among the allowed components" in outcome.reason


@pytest.mark.parametrize("slots", [1, 2])
def test_no_memory_for_one_answer_fails_the_trial_and_not_the_worker(
    slots: int, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(measure, "answer_alone", tight)
    monkeypatch.setattr(Pack, "answer", tight)
    hands = Hands(Room(tmp_path), cache, slots)
    for trial in range(2):
        hands.give(trial, metrics=(F1,) if trial else (), milestone_tokens=TOKENS, **SMALL)
    hands.finish()
    assert hands.ended[0].kind is OutcomeKind.COMPLETED
    assert (hands.ended[1].kind, hands.ended[1].failure) == (OutcomeKind.FAILED, FailureKind.OUT_OF_MEMORY)
    assert "Tried to allocate 2.00 GiB" in hands.ended[1].reason


def test_a_file_system_that_fails_while_a_stop_is_looked_for_fails_the_trial_alone(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Pack.answer, list[int]()

    def counted(self: Pack, requests: Any, sampling: Sampling) -> Any:
        calls.append(len(requests))
        return real(self, requests, sampling)

    def stop() -> None:
        if calls:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Pack, "answer", counted)
    monkeypatch.setattr(asked, "PART_ROWS", 3)
    hands = Hands(Room(tmp_path), cache, 2)
    hands.give(0, stop, metrics=(F1,), milestone_tokens=TOKENS, **SMALL)
    hands.give(1, metrics=(F1,), milestone_tokens=TOKENS, **SMALL)
    hands.finish()
    assert calls == [2, 1, 1, 1]
    assert (hands.ended[0].kind, hands.ended[1].kind) == (OutcomeKind.FAILED, OutcomeKind.COMPLETED)
    assert "Input/output error" in hands.ended[0].reason


def test_answers_take_no_more_than_their_time(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "PART_ROWS", 2)
    clock = iter(range(10**6))
    monkeypatch.setattr("trainer.metrics.measure.time.monotonic", lambda: next(clock))
    room = Room(tmp_path)
    outcome = run(room, cache, small(metrics=[Metric("slow", "generate", {**ASKS, "seconds": 1.5})]))
    assert outcome.failure is FailureKind.PASSING
    assert reports(room)[0].problems == {"slow": "it timed out after 1.5 s, with 4 of 6 rows answered"}
