"""What failed, by an error and its causes: the kind of a failure, and one line for a person."""

from __future__ import annotations

import torch

from trainer.components import ComponentError
from trainer.contract import FailureKind
from trainer.environment import mask
from trainer.space import chain, is_no_space


def classify(error: BaseException) -> FailureKind:
    """The kind of a failure, by the error and its causes."""
    links = chain(error)
    if is_no_space(error):
        return FailureKind.NO_SPACE
    if any(isinstance(e, torch.OutOfMemoryError | MemoryError) for e in links):
        return FailureKind.OUT_OF_MEMORY
    if any(isinstance(e, FileNotFoundError) for e in links):
        return FailureKind.MISSING_FILE
    if isinstance(error, ComponentError | ValueError | TypeError | KeyError):
        return FailureKind.BAD_CONFIG
    return FailureKind.ERROR


def describe(error: BaseException) -> str:
    """One line for a person: type and message of an error and of its innermost cause, without stack and secrets."""
    text, cause = _said(error), innermost_cause(error)
    if cause is error or " ".join(str(cause).split()) in text:
        return text
    return f"{text} (cause: {_said(cause)})"


def innermost_cause(error: BaseException) -> BaseException:
    """The error behind an error: what it was raised from, or what it was raised beside if it says nothing itself.

    It is the error itself if nothing is behind it. A cause that says nothing is passed over, unless all of them do.
    """
    said, seen = error, {id(error)}
    while True:
        implied = None if error.__suppress_context__ or str(error) else error.__context__
        behind = error.__cause__ or implied
        if behind is None or id(behind) in seen:
            return said
        seen.add(id(behind))
        error = behind
        said = error if str(error) or not str(said) else said


def _said(error: BaseException) -> str:
    """Type and message of an error; without a message, where it was raised."""
    text = " ".join(mask(str(error)).split())[:500] or f"no message, {_raised_in(error)}"
    return f"{type(error).__name__}: {text}"


def _raised_in(error: BaseException) -> str:
    """The function and line that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "never raised"
    where = trace.tb_frame
    return f"raised in {where.f_globals.get('__name__', '?')}.{where.f_code.co_name}, line {trace.tb_lineno}"
