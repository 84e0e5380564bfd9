"""A worker of a sweep whose room is in an object store: it reaches nothing of the room but the store.

    python -m tests.helpers.store_worker URL DIRECTORY WORKER

DIRECTORY holds its copy of the room. The last line says why it ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.store.worker_sync import Pace, synced_room
from trainer.worker import Worker

PACE = Pace(poll=0.1, beat=0.5, report=0.0, bulk=0.5)


def main() -> None:
    url, directory, name = sys.argv[1:]
    with synced_room(url, Path(directory), name, PACE) as room:
        print(Worker(room, name).run(), flush=True)


if __name__ == "__main__":
    main()
