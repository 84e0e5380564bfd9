"""`python -m tests.standin up DIR` serves until it is ended, and writes `DIR/env`, the environment of its clients.

python -m tests.standin up /tmp/wandb-here &
. /tmp/wandb-here/env
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from pathlib import Path

from tests.standin.server import StandIn


def text(standin: StandIn) -> str:
    """Lines for a shell to source. A client must not reach for a service that its parent's client started."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(standin.env.items())]
    return "\n".join(["unset WANDB_SERVICE", *lines]) + "\n"


def up(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with StandIn(directory) as standin:
        part = directory / f"env.{os.getpid()}"
        part.touch(mode=0o600)
        part.write_text(text(standin))
        part.replace(directory / "env")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description="A W&B server on loopback, for tests")
    verbs = parser.add_subparsers(required=True, dest="verb")
    serve = verbs.add_parser("up", help="serve until ended; DIR/env says how to reach it")
    serve.add_argument("directory", type=Path, metavar="DIR")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    up(parser.parse_args().directory.resolve())


if __name__ == "__main__":
    main()
