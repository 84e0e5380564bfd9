"""What cannot be measured is refused before any trial, in a sentence with key, value and what is allowed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import embedded_config
from trainer.contract import Metric
from trainer.entry.probe import answer

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"dataset__split": "train[:28]", "dataset_val__split": "train[:8]"}
FUNCTIONS = """
def good(answer, reference): return len(answer)
def text(answer, reference): return "1"
def broken(answer, reference): return answer["x"]
"""


def check(*metrics: Metric, here: bool = True, cases: Any = (), trusted: Any = (), **changes: Any) -> dict[str, Any]:
    request = {
        "config": embedded_config(**{**SMALL, **changes}),
        "components": list(trusted),
        "cases": cases,
        "device_here": here,
        "metrics": [
            {"name": m.name, "source": m.source, "options": dict(m.options), "every": m.every, "at": list(m.at)}
            for m in metrics
        ],
    }
    read: dict[str, Any] = json.loads(answer(request))
    return read


def generate(**options: Any) -> Metric:
    return Metric("m", "generate", {"score": "exact_match", "rows": 4, "max_new_tokens": 8, **options})


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scores_of_check.py").write_text(FUNCTIONS)
    (tmp_path / "no_reference.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (tmp_path / "words.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_can_be_measured_passes() -> None:
    metrics = [
        *(Metric(name, "validation", {"measure": name}) for name in ("perplexity", "token_accuracy", "bits_per_byte")),
        Metric("seconds", "run", {"measure": "trained_seconds"}),
        *(generate(score=name) for name in ("exact_match", "f1", "rouge_l", "json_valid")),
        generate(score="regex", pattern="[a-z]+", data="no_reference.jsonl"),
        generate(score="scores_of_check:good"),
        generate(score="scores_of_check.py:good", data="no_reference.jsonl"),
        generate(data=embedded_config(**SMALL)["dataset"]),
        Metric("program", "command", {"command": [sys.executable, "x.py"]}),
        Metric("mine", "logged", {"key": "reward"}),
    ]
    counted = check(*metrics, trusted=["scores_of_check"])
    assert counted["rows"] == 28, counted


@pytest.mark.parametrize(
    ("metric", "complaints"),
    [
        (Metric("m", "dream"), ["metric.m.source=dream is unknown; it must be validation, run, generate, command"]),
        (Metric("m", "run", {"measure": "watts"}), ["metric.m.measure=watts", "trained_seconds, tokens_per_second"]),
        (Metric("m", "validation", {}), ["metric.m.measure=None", "val_loss, perplexity"]),
        (generate(score="bleu"), ["metric.m.score=bleu is unknown; it must be exact_match, number_match, regex, f1"]),
        (generate(score="regex"), ["metric.m.pattern is missing"]),
        (generate(score="regex", pattern="(("), ["metric.m.pattern=(( is no regular expression"]),
        (generate(data="gone.jsonl"), ["metric.m.data=gone.jsonl cannot be read", "FileNotFoundError"]),
        (generate(data="no_reference.jsonl"), ["has no reference in 1 of 1 rows, the first is row 0", "m.reference"]),
        (generate(data="words.jsonl", prompt="question"), ["line 1 has no question"]),
        (generate(data="words.jsonl", score="number_match"), ["number_match finds no number in any of 1 references"]),
        (generate(max_new_tokens=100_000), ["metric.m: none of 8 rows has a prompt that leaves space"]),
        (generate(max_new_tokens=0), ["metric.m: max_new_tokens=0 must be at least 1"]),
        (generate(score="scores_of_check:text"), ["scores_of_check:text returned the text '1'; it must return a num"]),
        (generate(score="scores_of_check:broken"), ["scores_of_check:broken raised TypeError", "(row 0)"]),
        (Metric("m", "command", {}), ["metric.m.command is missing"]),
        (Metric("m", "command", {"command": ["no-such-program"]}), ["metric.m.command=no-such-program is no program"]),
        (Metric("m", "lm_eval", {}), ["metric.m.tasks is empty"]),
        (Metric("m", "lm_eval", {"tasks": ["x"]}), ["lm_eval, which metric.m asks for, needs lm-eval"]),
    ],
)
def test_what_cannot_be_measured_is_refused(metric: Metric, complaints: list[str]) -> None:
    refused = check(metric, trusted=["scores_of_check"])
    assert refused["metric"], refused
    for complaint in complaints:
        assert complaint in refused["error"]


def test_code_that_is_not_trusted_or_not_there() -> None:
    untrusted = check(generate(score="scores_of_check:good"))
    assert untrusted["untrusted"]
    assert "metric.m.score=scores_of_check.good is not among the allowed components" in untrusted["error"]
    assert check(generate(score="scores_of_check.py:good"))["untrusted"]
    data = check(generate(data={"_component_": "os.system", "command": "x"}))
    assert data["untrusted"]
    absent = check(generate(score="scores_of_check:absent"), trusted=["scores_of_check"])
    assert "scores_of_check has no absent" in absent["error"]


def test_what_only_some_trials_or_other_machines_have() -> None:
    perplexity = Metric("m", "validation", {"measure": "perplexity"})
    assert "metric.m needs the validation pass; set dataset_val" in check(perplexity, dataset_val=None)["error"]
    case = {"params": {"tokenizer.max_seq_len": 24}, "config": embedded_config(**SMALL, tokenizer__max_seq_len=24)}
    refused = check(generate(data="words.jsonl"), cases=[case])
    assert "rows" not in refused
    assert "(in a trial with tokenizer.max_seq_len=24)" in refused["error"]
    program = Metric("m", "command", {"command": ["no-such-program"]})
    assert check(program, here=False)["rows"] == 28
