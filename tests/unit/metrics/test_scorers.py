"""Answers are scored by the published rules, and a user's function by what it is allowed to do."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.components import ComponentError, UntrustedError
from trainer.metrics.errors import MeasurementError, MetricError
from trainer.metrics.scorers import SCORERS, build_scorer, exact_match, f1, json_valid, last_number, rouge_l

words = st.lists(st.sampled_from(["ja", "nein", "blau", "rot", "gold", "drei"]), max_size=8).map(" ".join)


def score(name: str, answer: str, reference: object, pattern: str | None = None) -> float:
    return build_scorer("metric.m", name, pattern, ())(answer, reference)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("no number", None),
        ("72", "72"),
        ("The answer is 72.", "72"),
        ("#### 1,234", "1234"),
        ("first 3, then 4.50 $", "4.5"),
        ("$1,234.50", "1234.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("it is \u22127", "-7"),
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("x=-5", "-5"),
        ("(-5)", "-5"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("2.5E-1", "0.25"),
        ("3,4,5", "5"),
        ("1,23", "23"),
        ("12,3456", "3456"),
        ("version 1.2.3", "3"),
        ("5%", "5"),
        ("+8", "8"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9), st.integers(0, 99), st.sampled_from(["{}", "{}.", "it is {} $", "#### {}\n"]))
def test_any_way_to_write_a_number_is_that_number(whole: int, cents: int, frame: str) -> None:
    wanted = f"{whole}.{cents:02}"
    assert score("number_match", frame.format(f"{whole:,}.{cents:02}"), wanted) == 1
    assert score("number_match", frame.format(wanted), f"#### {wanted}0") == 1
    assert score("number_match", frame.format(wanted), f"{whole + 1}.{cents:02}") == 0


@pytest.mark.parametrize(
    ("name", "answer", "reference", "value"),
    [
        ("exact_match", " Paris\n", "Paris", 1),
        ("exact_match", "paris", "Paris", 0),
        ("exact_match", "b", ["a", "b"], 1),
        ("number_match", "it has no number", "nor has this", 0),
        ("number_match", "7 of 8", ["7", "8.0"], 1),
        ("f1", "The Eiffel Tower!", "eiffel tower", 1),
        ("f1", "a big red car", "red car", 0.8),
        ("f1", "the", "a", 1),
        ("f1", "", "word", 0),
        ("f1", "x", ["y z", "x y"], 2 / 3),
        ("rouge_l", "police killed the gunman", "police kill the gunman", 0.75),
        ("rouge_l", "the gunman kill police", "police kill the gunman", 0.5),
        ("rouge_l", "The cat-sat.", "the cat sat", 1),
        ("rouge_l", "", "the cat", 0),
        ("json_valid", ' {"a": [1, null, "x"]}\n', None, 1),
        ("json_valid", "{'a': 1}", None, 0),
        ("json_valid", "NaN", None, 0),
        ("json_valid", "[" * 100_000, None, 0),
        ("json_valid", "9" * 6000, None, 1),
        ("json_valid", '```json\n{"a": 1}\n```', None, 0),
    ],
)
def test_scores(name: str, answer: str, reference: object, value: float) -> None:
    assert score(name, answer, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("pattern", "answer", "reference", "value"),
    [
        (r"#### (-?[\d,]+)", "so\n#### 72\n#### 9", "because\n#### 72", 1),
        (r"#### (-?[\d,]+)", "#### 72", "72", 1),
        (r"#### (-?[\d,]+)", "72", "72", 0),
        (r"\b[A-D]\b", "The answer is B.", "B", 1),
        (r"\b[A-D]\b", "The answer is B.", "C", 0),
        (r"^yes", "yes, it is", None, 1),
        (r"^yes", "no", None, 0),
        (r"a(x)?", "a", "", 1),
    ],
)
def test_regex_extracts_and_compares(pattern: str, answer: str, reference: str | None, value: float) -> None:
    assert score("regex", answer, reference, pattern) == value


@given(words, words)
def test_what_holds_of_all_shares(ours: str, theirs: str) -> None:
    for scorer in (exact_match, f1, rouge_l):
        value = scorer(ours, theirs)
        assert 0 <= value <= 1
        assert value == scorer(theirs, ours)
        assert scorer(ours, ours) == (1 if ours or scorer is not rouge_l else 0)
    assert rouge_l(ours, theirs) <= f1(ours, theirs) + 1e-12, "the order of words counts too"


@given(st.text())
def test_any_text_has_a_score(text: str) -> None:
    for name in SCORERS:
        assert 0 <= score(name, text, text, ".") <= 1
    assert json_valid(repr(text)) in (0, 1)


CODE = """
import math
def length(answer, reference): return len(answer) - len(reference or "")
def text(answer, reference): return "1.0"
def nothing(answer, reference): pass
def broken(answer, reference): return [1][len(answer) + 1]
def infinite(answer, reference): return math.inf
sqrt = math.sqrt
value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_scores.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_scores", None)


@pytest.mark.parametrize("place", ["own_scores", "own_scores.py", "{}/own_scores.py"])
def test_a_function_of_the_user_s(place: str, module: Path) -> None:
    place = place.format(module)
    scorer = build_scorer("metric.m", f"{place}:length", None, ["own_scores"])
    assert scorer("abc", "a") == 2
    assert scorer("abc", None) == 3
    for name, words in [
        ("text", "returned the text '1.0'; it must return a number"),
        ("nothing", "returned nothing; it must return a number"),
        ("broken", "raised IndexError: list index out of range for the answer 'a'"),
        ("infinite", "returned inf; it must return a finite number"),
    ]:
        with pytest.raises(MeasurementError, match=words):
            build_scorer("metric.m", f"{place}:{name}", None, ["own_scores"])("a", "b")


@pytest.mark.parametrize("place", ["own_scores", "own_scores.py"])
@pytest.mark.parametrize(
    ("name", "components", "error", "words"),
    [
        ("length", [], UntrustedError, "to recipe.components if you trust it"),
        ("length", ["own"], UntrustedError, "to recipe.components if you trust it"),
        ("sqrt", ["own_scores"], UntrustedError, "math defines"),
        ("absent", ["own_scores"], ComponentError, "has no absent"),
        ("value", ["own_scores.value"], MetricError, "is no function that can be called"),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_function_that_is_not_trusted_or_not_there(
    place: str, name: str, components: list[str], error: type[Exception], words: str
) -> None:
    sys.modules.pop("own_scores", None)
    with pytest.raises(error, match=words):
        build_scorer("metric.m", f"{place}:{name}", None, components)
    assert components[:1] in (["own_scores"], ["own_scores.value"]) or "own_scores" not in sys.modules, (
        "nothing of it has run"
    )


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="there is no file"):
        build_scorer("metric.m", f"{tmp_path}/gone.py:f", None, ["gone"])
    (tmp_path / "torn_scores.py").write_text("def f(:")
    with pytest.raises(ComponentError, match="cannot be imported: SyntaxError"):
        build_scorer("metric.m", f"{tmp_path}/torn_scores.py:f", None, ["torn_scores"])
    (tmp_path / "json.py").write_text("raise SystemExit")
    with pytest.raises(ComponentError, match="there is a module json already; rename the file"):
        build_scorer("metric.m", f"{tmp_path}/json.py:f", None, ["json"])
    (tmp_path / "torchtune.py").write_text("raise SystemExit")
    with pytest.raises(UntrustedError, match=r"add torchtune to recipe.components"):
        build_scorer("metric.m", f"{tmp_path}/torchtune.py:f", None, [])


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("bleu", None, "metric.m.score=bleu is unknown; it must be exact_match, number_match"),
        ("regex", None, "metric.m.pattern is missing"),
        ("regex", "(", r"metric.m.pattern=\( is no regular expression: missing \)"),
        (":f", None, "write module:function or file.py:function"),
        ("m:f()", None, "write module:function or file.py:function"),
    ],
)
def test_an_unknown_score(name: str, pattern: str | None, words: str) -> None:
    with pytest.raises(MetricError, match=words):
        build_scorer("metric.m", name, pattern, ())


def test_a_score_is_finite_for_empty_texts() -> None:
    assert all(math.isfinite(score(name, "", "", "x")) for name in SCORERS)
