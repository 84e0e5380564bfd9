"""Scores an answer by its reference: the scorers that we know, and functions of the user's.

Invariants: a scorer is a pure function of texts, and gives a number from 0 to 1; a user's function may give any finite
number. The score of a metric is the mean over its rows. A row with several references counts with the best of them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from trainer.components import ComponentError, UntrustedError, check_function, check_prefixes, load_function
from trainer.failures import describe
from trainer.metrics.errors import MeasurementError, MetricError
from trainer.shortening import short_text

# Takes an answer, and the reference as the data have it: a text, a list of texts, or None.
Scorer = Callable[[str, Any], float]

# A number in a text: with commas between thousands or without, with a sign that follows no word and no digit.
_NUMBER = re.compile(
    r"(?:(?<![\w.,)])(?P<sign>[-+\u2212]))?[$€£]?(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<power>[eE][-+]?\d{1,3}(?!\w))?"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


def exact_match(answer: str, reference: str) -> float:
    """1 if both are equal, but for spaces around them."""
    return float(answer.strip() == reference.strip())


def number_match(answer: str, reference: str) -> float:
    """1 if the last number of the answer equals the last number of the reference, as GSM8K is judged.

    Commas between thousands, currency signs and trailing zeros do not matter; signs do.
    """
    wanted = last_number(reference)
    return float(wanted is not None and last_number(answer) == wanted)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None if it has none."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one
        pass
    if last is None:
        return None
    sign = "-" if last["sign"] in ("-", "\u2212") else ""  # the second is the typographic one
    return Decimal(f"{sign}{last['digits'].replace(',', '')}{last['power'] or ''}")


def regex(answer: str, reference: str | None, pattern: re.Pattern[str]) -> float:
    """1 if what the pattern extracts from the answer equals what it extracts from the reference.

    The first match counts: its first group, or all of it if the pattern has no group. A reference in which the pattern
    matches nothing is taken whole. Without a reference it is 1 if the pattern matches.
    """
    extracted = _extracted(answer, pattern)
    if extracted is None or reference is None:
        return float(extracted is not None)
    wanted = _extracted(reference, pattern)
    return exact_match(extracted, reference if wanted is None else wanted)


def f1(answer: str, reference: str) -> float:
    """The F1 of shared words, as SQuAD is judged: lower case, without punctuation and articles."""
    ours, theirs = _squad_words(answer), _squad_words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    return _f_measure(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L, the F-measure of the longest common subsequence of words (Lin, 2004, section 3.1, β = 1).

    Words are lower case, and made of letters and digits, as the package `rouge_score` splits English without stemming.
    """
    ours, theirs = (_WORD.findall(text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return 0.0
    return _f_measure(_common_subsequence(ours, theirs), len(ours), len(theirs))


def json_valid(answer: str, reference: str | None = None) -> float:
    """1 if the answer is JSON, with nothing but spaces around it."""
    del reference
    try:
        json.loads(answer, parse_constant=_refuse_constant, parse_int=str)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


SCORERS: Mapping[str, Callable[..., float]] = {
    "exact_match": exact_match,
    "number_match": number_match,
    "regex": regex,
    "f1": f1,
    "rouge_l": rouge_l,
    "json_valid": json_valid,
}
# These judge an answer by itself.
WITHOUT_REFERENCE = ("regex", "json_valid")


def build_scorer(key: str, score: str, pattern: str | None, components: Sequence[str]) -> Scorer:
    """The scorer of a name, or of a user's function.

    Args:
        key: of the metric in the configuration, for error texts.
        score: a name of `SCORERS`, `module:function` or `file.py:function`.
        pattern: for `regex`.
        components: what the user trusts, see `trainer.components`.

    Raises:
        MetricError: there is no such scorer, or the pattern is none.
        UntrustedError, ComponentError: the function is not trusted, or does not exist.
    """
    if ":" in score:
        return partial(_user_score, _load_user_function(f"{key}.score", score, components), score)
    if score not in SCORERS:
        raise MetricError(
            f"{key}.score={score} is unknown; it must be {', '.join(SCORERS)}, or a function of your own as "
            "module:function or file.py:function"
        )
    if score == "regex":
        return partial(_best, partial(regex, pattern=_compiled(key, pattern)))
    return partial(_best, SCORERS[score])


def needs_reference(score: str) -> bool:
    """Whether a scorer cannot judge an answer without a reference; a user's function gets None."""
    return score in SCORERS and score not in WITHOUT_REFERENCE


def _best(scorer: Callable[[str, Any], float], answer: str, reference: Any) -> float:
    references = reference if isinstance(reference, list) else [reference]
    return max(scorer(answer, None if one is None else str(one)) for one in references)


def _user_score(function: Callable[[str, Any], Any], name: str, answer: str, reference: Any) -> float:
    try:
        value = function(answer, reference)
    except Exception as error:
        raise MeasurementError(f"{name} raised {describe(error)} for the answer {short_text(repr(answer))}") from error
    if isinstance(value, str | bytes) or value is None:
        kind = "nothing" if value is None else f"the text {short_text(repr(value))}"
        raise MeasurementError(f"{name} returned {kind}; it must return a number")
    try:
        number = float(value)
    except Exception as error:
        raise MeasurementError(f"{name} returned {short_text(repr(value))}; it must return a number") from error
    if not math.isfinite(number):
        raise MeasurementError(f"{name} returned {number}; it must return a finite number")
    return number


def _load_user_function(key: str, path: str, components: Sequence[str]) -> Callable[[str, Any], Any]:
    """The user's function at `module:function` or `file.py:function`, by the rule of `recipe.components`."""
    place, _, name = path.rpartition(":")
    if not place or not name.isidentifier():
        raise MetricError(f"{key}={path} is no function; write module:function or file.py:function")
    if place.endswith(".py"):
        function = _from_file(key, path, Path(place), name, components)
    else:
        function = load_function(key, f"{place}.{name}", components)
    if not callable(function):
        raise MetricError(f"{key}={path} is no function that can be called")
    return function  # type: ignore[no-any-return]


def _from_file(key: str, path: str, file: Path, name: str, components: Sequence[str]) -> Any:
    """A function of a file, whose name without `.py` must be trusted like the name of a module."""
    dotted = f"{file.stem}.{name}"
    check_prefixes(components)
    if not any(f"{dotted}.".startswith(f"{prefix.rstrip('.')}.") for prefix in components):
        raise UntrustedError(f"{key}={path} is code of your own; add {file.stem} to recipe.components if you trust it")
    if not file.is_file():
        raise ComponentError(f"{key}={path} cannot be used: there is no file {file.absolute()}")
    try:
        function = getattr(_module_of(key, path, file), name)
    except AttributeError as error:
        raise ComponentError(f"{key}={path} cannot be used: {file} has no {name}") from error
    check_function(key, dotted, function, components)
    return function


def _module_of(key: str, path: str, file: Path) -> Any:
    """The module of a file, which is imported once under its own name."""
    known = sys.modules.get(file.stem)
    if known is not None:
        if Path(str(getattr(known, "__file__", None))).resolve() == file.resolve():
            return known
        raise ComponentError(f"{key}={path} cannot be used: there is a module {file.stem} already; rename the file")
    specification = importlib.util.spec_from_file_location(file.stem, file.resolve())
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[file.stem]
        raise ComponentError(f"{key}={path} cannot be imported: {describe(error)}") from error
    return module


def _compiled(key: str, pattern: str | None) -> re.Pattern[str]:
    if not pattern:
        raise MetricError(f"{key}.pattern is missing; score=regex needs a regular expression")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise MetricError(f"{key}.pattern={pattern} is no regular expression: {error}") from error


def _extracted(text: str, pattern: re.Pattern[str]) -> str | None:
    match = pattern.search(text)
    return None if match is None else match[1] or "" if pattern.groups else match[0]


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f_measure(shared: int, ours: int, theirs: int) -> float:
    """2PR / (P + R) of shared words."""
    return 2 * shared / (ours + theirs)


def _common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for index, other in enumerate(theirs, 1):
            before, lengths[index] = (
                lengths[index],
                before + 1 if word == other else max(lengths[index], lengths[index - 1]),
            )
    return lengths[-1]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
