"""Programs that a configuration names, as far as this machine can tell whether they may be executed.

Invariant: a program that is not on this machine is not refused; the machines that run it may have it.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from sweep.errors import ConfigError


def check_executable(key: str, command: str) -> None:
    """Refuse a command whose program is here and may not be executed by this user.

    Args:
        key: names the command, for the error text.

    Raises:
        ConfigError: it may not, or the command has no words.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{key}={command} is no command ({error}); quote it as in a shell") from error
    if not words:
        raise ConfigError(f"{key} is empty; name an interpreter, or leave it null")
    path = Path(words[0])
    if path.is_absolute() and path.exists() and (path.is_dir() or not os.access(path, os.X_OK)):
        raise ConfigError(
            f"{key}={command}: {path} may not be executed by this user; name an interpreter that may be, or make it "
            "executable with `chmod +x`"
        )
