"""`python -m tests.helpers.process_facts`: prints as JSON what a program can tell of its process, and ends as told.

The first argument says how it ends: an exit code, `raises`, `interrupted`, or the name of a signal.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from pathlib import Path


def facts() -> dict[str, object]:
    """All but what no two processes have in common."""
    return {
        "name": __name__,
        "words": sys.argv,
        "directory": str(Path.cwd()),
        "path": sys.path,
        "environment": {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
        "files": sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())[:-1],  # the last: the listing
        "inheritable": [os.get_inheritable(file) for file in (0, 1, 2)],
        "input": sys.stdin.read(),
        "leads a session": os.getsid(0) == os.getpid(),
        "group is the starter's": os.getpgrp() == os.getpgid(int(os.environ["STARTER"])),
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "child": str(signal.getsignal(signal.SIGCHLD)),
    }


def main(end: str) -> None:
    print(json.dumps(facts()))
    atexit.register(print, "at its exit")
    if end == "raises":
        raise ValueError("as told")
    if end == "interrupted":
        raise KeyboardInterrupt
    if end.isdigit():
        sys.exit(int(end))
    sys.stdout.flush()
    os.kill(os.getpid(), getattr(signal, end))


if __name__ == "__main__":
    main(sys.argv[1])
