"""One line about an error, with what is behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainer.failures import describe, innermost_cause


def chained() -> None:
    """As `datasets` raises it: the error that is seen says nothing, the innermost one names the row."""
    try:
        try:
            raise ValueError("JSON parse error: Missing a name for object member. in row 10")
        except ValueError as error:
            raise TypeError("cannot cast") from error
    except TypeError as error:
        raise RuntimeError("An error occurred while generating the dataset") from error


def silent() -> None:
    next(iter(()))


def silent_beside() -> None:
    try:
        raise KeyError("data_files")
    except KeyError:
        raise RuntimeError  # noqa: B904 - as libraries do


def said_beside() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        raise ValueError("epochs must be a number")  # noqa: B904


def repeated() -> None:
    try:
        raise ValueError("no such key x")
    except ValueError as error:
        raise RuntimeError(f"the configuration is wrong: {error}") from error


def silent_cause() -> None:
    try:
        raise ValueError("in the middle") from StopIteration()
    except ValueError as error:
        raise RuntimeError("outside") from error


def circle() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def caught(act: Callable[[], None]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (
            chained,
            "RuntimeError: An error occurred while generating the dataset (cause: ValueError: JSON parse error: "
            "Missing a name for object member. in row 10)",
        ),
        (silent_beside, "(cause: KeyError: 'data_files')"),
        (said_beside, "ValueError: epochs must be a number"),
        (repeated, "RuntimeError: the configuration is wrong: no such key x"),
        (silent_cause, "RuntimeError: outside (cause: ValueError: in the middle)"),
        (circle, "ValueError: first (cause: ValueError: second)"),
    ],
)
def test_a_line(act: Callable[[], None], line: str) -> None:
    said = describe(caught(act))
    assert said == line or (line.startswith("(") and said.endswith(line))


def test_an_error_that_says_nothing_is_told_by_where_it_was_raised() -> None:
    said = describe(caught(silent))
    assert said.startswith(f"StopIteration: no message, raised in {__name__}.silent, line ")


def test_a_message_is_one_line_and_not_endless() -> None:
    said = describe(ValueError("a\n b" * 1000))
    assert "\n" not in said
    assert len(said) < 600


def test_the_innermost_cause() -> None:
    assert str(innermost_cause(caught(chained))).startswith("JSON parse error")
    alone = ValueError("alone")
    assert innermost_cause(alone) is alone
