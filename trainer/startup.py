"""Makes a process of this program independent of its locale and of options of the interpreter that break libraries.

    LC_ALL=C PYTHONUTF8=0 sweep run …         texts, file names and arguments would be ASCII
    PYTHONOPTIMIZE=1 sweep run …              Hydra's parser needs its assertions, and 2 leaves out docstrings
    PYTHONWARNINGS=error sweep run …          every library that warns would end the program

Invariants: standard library only. `prepare` is the first call of a program. It may replace the process by one with the
same arguments, process id and open files, once. Child processes inherit the environment that it leaves. A stream that
is no terminal gets UTF-8, as every file does.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

# Set in a process that has replaced another one, to the encoding of the terminal; removed at once.
_RESTARTED = "_SWEEP_RESTARTED"


def prepare() -> None:
    """Leave the environment, the encodings and the output streams of this process as the program needs them."""
    encoding = os.environ.pop(_RESTARTED, None)
    if encoding is None and sys.executable and (changed := repaired(os.environ)):
        kept = {key: value for key, value in os.environ.items() if key not in changed}
        given = {key: value for key, value in changed.items() if value}
        own = {_RESTARTED: getattr(sys.stdout, "encoding", None) or "utf-8"}
        with suppress(OSError):  # then it goes on as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept | given | own)
    for stream in (sys.stdout, sys.stderr):
        show_all(stream, encoding)


def repaired(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that this process must be started with in place of its own; an empty text: without the variable.

    Args:
        environment: of this process.
    """
    changed: dict[str, str] = {}
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        changed["PYTHONUTF8"] = "1"
    if sys.flags.optimize and "PYTHONOPTIMIZE" in environment:
        changed["PYTHONOPTIMIZE"] = ""
    filters = environment.get("PYTHONWARNINGS", "").split(",")
    kept = [text for text in filters if not _is_error(text)]
    if kept != filters:
        changed["PYTHONWARNINGS"] = ",".join(kept)
    return changed


def show_all(stream: TextIO | None, encoding: str | None = None) -> None:
    """Let a stream show what its encoding lacks as a `?`, in place of an error.

    Args:
        encoding: of the terminal, if the process has replaced one with another encoding.
    """
    if not isinstance(stream, io.TextIOWrapper):  # None in a process without streams, or what a test put there
        return
    keeps = encoding is None or "PYTHONIOENCODING" in os.environ
    with suppress(LookupError, ValueError, OSError):  # closed
        own = None if keeps else encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=own, errors="replace")


def _is_error(text: str) -> bool:
    """Whether a filter of PYTHONWARNINGS turns warnings into errors; Python takes any beginning of the word."""
    action = text.split(":", maxsplit=1)[0].strip()
    return bool(action) and "error".startswith(action)
