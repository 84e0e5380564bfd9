"""The worker's command line: `python -m trainer serve`, `probe` and `prefork`.

`serve` takes trials from a room, `probe` counts the data of a configuration, and `prefork` makes workers on request.

Invariant: torch is imported only after the command line has been parsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer import PROCESS_ENV, logs
from trainer.startup import prepare


def main() -> int:
    prepare()
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="train the trials that a room assigns to this worker")
    serve.add_argument("--room", type=Path, required=True)
    serve.add_argument("--worker", required=True)
    serve.add_argument("--trials", type=int, default=0, help="end after this many trials; 0: no limit")
    serve.add_argument("--idle-seconds", type=float, default=900.0)
    serve.add_argument(
        "--slots", type=int, default=1, help="trials at the same time; 0: choose the fastest number by measuring"
    )
    serve.add_argument(
        "--token", help="of the sweep's creation, as in its sweep.json; default: that of the room at the start"
    )
    serve.add_argument(
        "--lock-held", action="store_true", help="the parent process holds the worker's lock and has handed it down"
    )
    probe = verbs.add_parser(
        "probe", help="read a torchtune configuration as JSON, print rows and label tokens of its data"
    )
    probe.add_argument("--speed", action="store_true", help="also train a few micro-batches, to measure the speed")
    prefork = verbs.add_parser("prefork", help="make workers on request (see trainer/entry/prefork.py)")
    prefork.add_argument("socket", type=int)
    prefork.add_argument("--forks", action="store_true", help="fork each worker; without it, become the first one")
    args = parser.parse_args()

    for key, value in PROCESS_ENV.items():
        os.environ.setdefault(key, value)
    if args.verb == "probe":
        from trainer.entry.probe import main as run_probe

        return run_probe(sys.stdin.read(), args.speed)
    if args.verb == "prefork":
        from trainer.entry.prefork import main as serve_prefork

        return serve_prefork(args.socket, args.forks)
    from trainer.exit_guard import limit_exit
    from trainer.presence import room_token
    from trainer.room import Room
    from trainer.worker import Worker, run_worker

    limit_exit()
    logs.configure()
    room = Room(args.room)
    token = room_token(room) if args.token is None else args.token
    worker = Worker(room, args.worker, args.trials, args.idle_seconds, slots=args.slots, token=token)
    return run_worker(room, worker, args.lock_held)


if __name__ == "__main__":
    sys.exit(main())
