"""Hydra's grammar of overrides, for values that this program reads itself.

Invariants: Hydra's parser is used here and in `composition` only. Every error says what cannot be read and why, in
words that need no knowledge of parsers. `choice` takes null here, as the bare form `null,1.0` does in Hydra too.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

# Opening brackets within each other; the parser recurs at each of them.
MAX_DEPTH = 40
_ANYTHING = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


class GrammarError(ValueError):
    """A value is not written in the grammar; the text says why."""


def parse_value(text: object) -> Override:
    """What Hydra reads from `key=TEXT`.

    Raises:
        GrammarError: it cannot be read.
    """
    written = str(text)
    if _depth(written) > MAX_DEPTH:
        raise GrammarError(f"it is nested more than {MAX_DEPTH} levels deep")
    parser = OverridesParser.create()
    parser.functions.definitions["choice"] = _ANYTHING
    try:
        return parser.parse_override(f"key={written}")
    except HydraException as error:
        raise GrammarError(reason(error, written)) from error
    except (RecursionError, AssertionError, ValueError, OverflowError, AttributeError) as error:
        said = " ".join(str(error).split())[:100]
        raise GrammarError(f"Hydra's parser ends with {type(error).__name__}{f': {said}' if said else ''}") from error


def can_read(text: str) -> bool:
    """Whether the grammar has this value."""
    try:
        parse_value(text)
    except GrammarError:
        return False
    return True


def holds_sweep(value: Any) -> bool:
    """Whether a value varies, or holds one that does."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Sweep) or any(map(holds_sweep, inner))


def quoted(text: str) -> str:
    """The text as a value of the grammar that stands for it, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()


def reason(error: BaseException, text: str) -> str:
    """Why the parser refuses a value, with the character that it refuses if there is one.

    Args:
        text: the value, or the whole override.
    """
    cause: Any = error.__cause__
    if type(cause).__name__ == "LexerNoViableAltException":
        skipped = 0 if "key=" not in str(cause.input) or text.startswith("key=") else len("key=")
        at = max(0, cause.startIndex - skipped)
        letter = text[at : at + 1]
        return f"the character {letter!r} must stand within quotes" if letter else "a quote is not closed"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    said = re.sub(r"^(\w+Error) while evaluating '.{200,}?': ", r"\1: ", said)
    return said.replace("<EOF>", "the end of the text")[:300]


def _depth(text: str) -> int:
    """How many brackets are open at once, at most; quotes are not looked at, so that it may be less in truth."""
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    return deepest
