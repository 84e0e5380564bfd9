"""The directory of the command that began a sweep, in the processes that build its components.

Relative paths, and modules of the user's own, mean that directory, on whatever machine and from whatever directory the
sweep is resumed.

Invariants: standard library only. The directory is the last place in which modules are looked for, so that no file in
it can replace an installed module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_entered: list[str] = []


def enter_directory(directory: str, components: Sequence[str] = ()) -> None:
    """Work in the directory of a sweep's first command, if this machine has it.

    Args:
        directory: an absolute path; empty: a sweep of an old version, whose processes stay where they were started.
        components: modules that the user trusts; if there are any, they are looked for in the directory too.
    """
    if directory:
        with suppress(OSError):
            os.chdir(directory)
            if components and directory not in sys.path:
                sys.path.append(directory)
        if directory not in _entered:
            _entered.append(directory)
    try:
        Path.cwd()
    except FileNotFoundError:  # torchtune asks for it, and the one in which this process was started was deleted
        os.chdir("/")


def module_places() -> str:
    """Where a module of the user's own is looked for, for a person."""
    return " and ".join(["among the installed packages", "in PYTHONPATH", *(f"in {name}" for name in _entered)])
