"""What a person reads when the program itself is at fault.

Invariants: nothing is printed here. The traceback is in a file that only its owner can read, without the values of
environment variables that a configuration refers to. `FAULT` stands in every such sentence, so that a test or a fuzzer
can tell it from a person's mistake.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from trainer.environment import mask

FAULT = "this is a fault of sweep"
ISSUES = "the issues of sweep's repository"


def fault_text(error: BaseException) -> str:
    """A sentence about an exception that nothing expected: what it is, where its traceback is, and how to report it."""
    text = " ".join(mask(str(error)).split())[:300]
    what = f"{FAULT} and not of your input: {type(error).__name__}{f': {text}' if text else ''}"
    full = mask("".join(traceback.format_exception(error)))
    words = " ".join(word for word in sys.argv if "=" not in word)  # a value may be a secret
    file = _written(f"{words}\n{full}")
    if file is None:
        return f"{what}; no file could be written, so here is what to report in {ISSUES}:\n{full}"
    return f"{what}; please report it in {ISSUES} with the file {file}, which has the traceback"


def _written(text: str) -> Path | None:
    """A new file with this text, in the directory for the state of programs or that for temporary files."""
    for place in (_state_directory, tempfile.gettempdir):
        with suppress(OSError, ValueError):
            directory = Path(place())
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="sweep-fault-", suffix=".txt", dir=directory)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
    return None


def _state_directory() -> str:
    home = os.path.expanduser("~/.local/state")  # noqa: PTH111 - that of pathlib raises where there is no home
    return f"{os.environ.get('XDG_STATE_HOME') or home}/sweep"
