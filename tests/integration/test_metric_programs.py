"""Metrics that a program or the user's own code gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.attempts import reports, run, spec, steps
from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import FailureKind, Metric, OutcomeKind, StopCause, TrialSpec, encode
from trainer.evaluation import external
from trainer.metrics.errors import MetricError
from trainer.metrics.programs import choose_score
from trainer.reporter import RoomReporter
from trainer.room import Room, write_atomic

pytestmark = pytest.mark.slow

# Three micro-batches; the second ends at the first milestone, the third is the end.
SMALL: dict[str, Any] = {"dataset__split": "train[:12]", "dataset_val__split": "train[:8]"}
# Writes the sum of the adapter's B, which is 0 in the base, and says so.
SIZE = """
import json, sys
from safetensors.numpy import load_file
adapter, output = sys.argv[1:]
tensors = load_file(adapter + "/adapter_model.safetensors")
size = sum(float(abs(value).sum()) for name, value in tensors.items() if "lora_B" in name)
print("the size is", size)
with open(output, "w") as file:
    json.dump({"results": {"size": size, "other": 1}}, file)
"""


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def command(*words: str, name: str = "size", **options: Any) -> Metric:
    return Metric(name, "command", {"command": [sys.executable, *words], **options})


def small(*metrics: Metric, attempt: int = 1, **more: Any) -> TrialSpec:
    return replace(spec(attempt, **SMALL), metrics=metrics, milestone_tokens=90, **more)


def test_a_program_measures_the_adapter_of_each_milestone_and_of_the_base(cache: Cache, tmp_path: Path) -> None:
    plain, room = Room(tmp_path / "plain"), Room(tmp_path / "program")
    run(plain, cache, small())
    merged = "import sys, os; print('|Tasks|Metric|Value|\\n|t|files|%d|' % len(os.listdir(sys.argv[1])))"
    files = command("-c", merged, "{merged}", name="files", score="files")
    metrics = command("-c", SIZE, "{adapter}", "{output}"), files
    assert run(room, cache, small(*metrics, measure_base=True)).kind is OutcomeKind.COMPLETED
    assert steps(room) == steps(plain)
    first, last = reports(room)
    assert first.base_scores["size"] == 0
    assert 0 < first.scores["size"] < last.scores["size"]
    assert first.scores["files"] >= 1
    log = room.attempt(0, 1).metric_log("size")
    assert log.read_text() == f"the size is {last.scores['size']}\n"
    assert not (room.attempt(0, 1).path / "scratch").exists()
    assert cache._kept, "what the worker keeps stays"


@pytest.mark.parametrize(
    ("words", "options", "problem"),
    [
        (["-c", "raise SystemExit('no GPU')"], {}, "failed with exit code 1: no GPU"),
        (["-c", "print(1)"], {}, "the evaluation has no score"),
        (["-c", "import time; time.sleep(60)"], {"seconds": 0.2}, "timed out after metric.size.seconds=0.2"),
        (
            ["-c", SIZE, "{adapter}", "{output}"],
            {"score": "acc"},
            "metric.size.score=acc must name one of the program's numbers, which has none, only other, size",
        ),
    ],
)
def test_a_program_that_gives_no_number_is_a_problem_of_its_metric(
    words: list[str], options: dict[str, Any], problem: str, cache: Cache, tmp_path: Path
) -> None:
    metric = replace(command(*words, **options), at=(1,))
    room, run_value = Room(tmp_path), Metric("seconds", "run", {"measure": "trained_seconds"})
    outcome = run(room, cache, small(metric, run_value))
    (first,) = reports(room)
    assert problem in first.problems["size"]
    assert set(first.scores) == {"seconds"}
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, FailureKind.PASSING)
    assert problem in outcome.reason


def test_a_program_that_fails_twice_and_then_not_has_measured(cache: Cache, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    flaky = (
        "import sys, pathlib; path = pathlib.Path(sys.argv[1]); seen = len(path.read_text()) if path.exists() else 0\n"
        "path.write_text('x' * (seen + 1))\n"
        "if seen % 3 < 2: raise SystemExit('busy')\n"
        "pathlib.Path(sys.argv[2]).write_text('{\"size\": 3}')"
    )
    outcome = run(Room(tmp_path / "room"), cache, small(command("-c", flaky, str(tries), "{output}")))
    assert outcome.kind is OutcomeKind.COMPLETED
    assert len(tries.read_text()) == 6, "three tries at each of two milestones"
    assert [report.scores for report in reports(Room(tmp_path / "room"))] == [{"size": 3.0}] * 2


def test_a_stop_ends_a_program_and_the_next_attempt_runs_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "POLL_SECONDS", 0.01)
    room, mark = Room(tmp_path / "room"), tmp_path / "mark"
    wait = (
        "import sys, time, pathlib; path = pathlib.Path(sys.argv[1])\n"
        "if not path.exists(): path.write_text('x'); time.sleep(60)\n"
        "pathlib.Path(sys.argv[2]).write_text('{\"size\": 3}')"
    )
    metric = command("-c", wait, str(mark), "{output}")
    seconds = Metric("seconds", "run", {"measure": "trained_seconds"})
    stopped = run(
        room, cache, small(seconds, metric), lambda: (StopCause.PREEMPTED, "needed") if mark.exists() else None
    )
    assert (stopped.kind, stopped.cause, reports(room)) == (OutcomeKind.STOPPED, StopCause.PREEMPTED, [])
    assert run(room, cache, small(seconds, metric, attempt=2)).kind is OutcomeKind.COMPLETED
    plain = Room(tmp_path / "plain")
    run(plain, cache, small())
    assert [report.milestone for report in reports(room, 2)] == [1, 2]
    assert [report.loss for report in reports(room, 2)] == [report.loss for report in reports(plain)]
    assert steps(room) + steps(room, 2) == steps(plain)
    trained = [report.scores["seconds"] for report in reports(room, 2)]
    assert 0 < trained[0] < trained[1], "what the first attempt trained counts"


@pytest.mark.parametrize(
    ("scores", "name", "value"),
    [
        ({"a": 1.0, "t/a": 2.0}, "a", 1.0),
        ({"t/acc": 2.0, "t/f1": 3.0}, "acc", 2.0),
        ({"gsm8k/exact_match": 0.5}, "gsm8k/exact_match", 0.5),
        ({"t/acc": 2.0, "u/acc": 3.0}, "acc", "has several: t/acc, u/acc"),
        ({"t/acc": 2.0}, "cc", "has none, only t/acc"),
    ],
)
def test_which_number_of_a_program_counts(scores: Mapping[str, float], name: str, value: float | str) -> None:
    if isinstance(value, float):
        assert choose_score(scores, name, "metric.m") == value
        return
    with pytest.raises(MetricError, match=value):
        choose_score(scores, name, "metric.m")


def logged_run(room: Room, cache: Cache, wanted: TrialSpec, logged: Mapping[str, float], stop: Any = None) -> Any:
    files = room.attempt(wanted.trial, wanted.attempt)
    write_atomic(files.spec, encode(wanted))
    reporter = RoomReporter(files)
    try:
        return Attempt(room, wanted, cache, reporter, stop or (lambda: None), lambda: logged).run()
    finally:
        reporter.close(None)


def test_a_number_that_the_user_s_own_code_logs(cache: Cache, tmp_path: Path) -> None:
    """The last one before the milestone, also where an earlier attempt logged it."""
    metric = Metric("mine", "logged", {"key": "reward"})
    room = Room(tmp_path / "room")
    stopped = logged_run(room, cache, small(metric), {"reward": 2.5, "x": 1.0}, lambda: (StopCause.PREEMPTED, "needed"))
    assert stopped.cause is StopCause.PREEMPTED
    assert logged_run(room, cache, small(metric, attempt=2), {}).kind is OutcomeKind.COMPLETED
    assert [dict(report.scores) for report in reports(room, 2)] == [{"mine": 2.5}] * 2
    never = Room(tmp_path / "never")
    outcome = logged_run(never, cache, small(metric), {})
    assert reports(never)[0].problems == {"mine": "wandb.hook has returned no number named reward so far, but nothing"}
    assert outcome.failure is FailureKind.PASSING


def test_what_a_program_is_given_lies_outside_of_the_adapter_that_is_reported(cache: Cache, tmp_path: Path) -> None:
    listing = "import sys, os, json; json.dump({'size': len(os.listdir(sys.argv[1]))}, open(sys.argv[2], 'w'))"
    room = Room(tmp_path)
    run(room, cache, small(command("-c", listing, "{directory}", "{output}")))
    assert [report.scores["size"] for report in reports(room)] == [0, 0]
    assert json.loads((room.attempt(0, 1).adapter / "adapter_config.json").read_text())["r"] == 8
