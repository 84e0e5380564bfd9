"""Says how a process ended, for a person.

Invariant: standard library only.
"""

from __future__ import annotations

import signal

_CAUSES = {
    signal.SIGKILL: "which the system sends when memory runs out",
    signal.SIGXCPU: "which means that its limit of processor time was reached",
    signal.SIGXFSZ: "which means that its limit of a file's size was reached",
    signal.SIGBUS: "which may mean that no space or memory is left",
}
# What a shell or a container makes of a signal.
_SIGNAL_CODES = 128


def how_it_ended(code: int) -> str:
    """The exit code or the signal of a process, with the signal's usual cause.

    Args:
        code: as `subprocess` returns it: negative for a signal.
    """
    number = -code if code < 0 else code - _SIGNAL_CODES
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"exit code {code}"
    ended = f"signal {name.name}" if code < 0 else f"exit code {code}, which stands for {name.name}"
    cause = _CAUSES.get(name)
    return f"{ended}, {cause}" if cause and code < 0 else ended


def last_line(text: str, limit: int = 300) -> str:
    """The last line of what a process wrote that is not empty, shortened; empty if it wrote none."""
    lines = text.strip().splitlines()
    line = lines[-1].strip() if lines else ""
    return line if len(line) <= limit else f"{line[:limit]} …"
