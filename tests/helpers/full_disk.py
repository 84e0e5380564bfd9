"""A sweep on a small disk that runs full and is emptied again; really full: a tmpfs in a user namespace of its own.

    unshare -rm python -m tests.helpers.full_disk DIRECTORY SCENARIO OVERRIDES…

mounts a tmpfs of `DISK_MIB` at DIRECTORY, runs a sweep with its rooms there, and prints what it saw as JSON. Command
line and workers are the real ones. Scenarios: `freed`: the disk is full for a while once a trial has
reported, then there is space. `stopped`: the sweep is stopped while the disk is full, and resumed when there is space.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.cli import SMALL, command
from tests.helpers.waiting import until
from trainer.files import write_atomic
from trainer.space import is_no_space

DISK_MIB = 48
FULL_SECONDS = 12.0
WAITS = "the sweep waits"


def main() -> None:
    root, scenario, overrides = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(root)], check=True)
    os.environ["SWEEP_ROOMS"] = str(root / "rooms")
    log = Path(f"{root}.log")  # on another disk
    with log.open("wb") as output:
        words = ["run", *SMALL, "name=s", *overrides]
        running = subprocess.Popen(command(*words), stdout=output, stderr=subprocess.STDOUT)
        room = root / "rooms" / "s"
        until(lambda: any(path.read_text().count("\n") for path in room.glob("trials/*/*/reports.jsonl")), running)
        fill(root)
        until(lambda: WAITS in log.read_text(), running)
        waiting = json.loads(sweep("status", "s", "--json"))
        seen: dict[str, Any] = {"waits": waiting["waits"], "status": WAITS in sweep("status", "s")}
        if scenario == "stopped":
            seen["stop"] = sweep("stop", "s")
            seen["stopped_code"] = running.wait()
        else:
            keep_full(root, FULL_SECONDS)
    (root / "filler").unlink()
    if scenario == "stopped":
        seen["resumed"] = sweep("resume", "s")
    else:
        seen["code"] = running.wait()
    print(json.dumps({**seen, "log": log.read_text(), "state": json.loads(sweep("status", "s", "--json"))}))


def sweep(*words: str) -> str:
    """What a verb prints."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=True).stdout


def fill(root: Path) -> None:
    """Write until nothing fits any more, not even an empty file with a name."""
    with (root / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert is_no_space(error)
    try:
        write_atomic(root / "one", "x", durable=False)
    except OSError as error:
        assert is_no_space(error)


def keep_full(root: Path, seconds: float) -> None:
    """Take what is freed, for so long: scratch files that could not be written are removed again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fill(root)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
