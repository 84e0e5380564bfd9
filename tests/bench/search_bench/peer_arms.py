"""A search library in an environment of its own, as a method of the replay."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.search_bench.replay import Decision, Job
from tests.bench.search_bench.tables import Table
from trainer.contract import Report

ADAPTERS = Path(__file__).parent / "peers"
# Arm: (environment, adapter, what the adapter calls it). The number is the reduction factor.
PEERS = {
    "syne-tune asha 3": ("syne-tune", "syne_tune_peer.py", "asha-3"),
    "syne-tune asha 4": ("syne-tune", "syne_tune_peer.py", "asha-4"),
    "syne-tune bohb 3": ("syne-tune", "syne_tune_peer.py", "bohb-3"),
    "syne-tune bohb 4": ("syne-tune", "syne_tune_peer.py", "bohb-4"),
    "ray asha 3": ("ray", "ray_peer.py", "random-3"),
    "ray asha 4": ("ray", "ray_peer.py", "random-4"),
    "ray asha+tpe 4": ("ray", "ray_peer.py", "tpe-4"),
    "smac hyperband 3": ("smac", "smac_peer.py", "hyperband-3"),
    "neps priorband asha": ("neps", "neps_peer.py", "priorband-asha-3"),
    "neps priorband async_hb": ("neps", "neps_peer.py", "priorband-async_hb-3"),
    "ifbo": ("neps", "neps_peer.py", "ifbo"),
}


class PeerError(RuntimeError):
    """The peer's library failed; its message is the peer's."""


class PeerProcess:
    """One adapter process; serves one sweep after another."""

    def __init__(self, interpreter: str, adapter: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [interpreter, str(ADAPTERS / adapter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )

    def call(self, **request: Any) -> Mapping[str, Any]:
        """Raises PeerError: the library raised, or the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError("the adapter's process ended") from error
        line = self._process.stdout.readline()
        answer: Mapping[str, Any] = json.loads(line) if line else {"error": "the adapter's process ended"}
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class PeerMethod:
    """A sweep of a peer."""

    def __init__(self, process: PeerProcess, arm: str, table: Table, seed: int) -> None:
        self._process = process
        process.call(op="start", arm=arm, space=table.space, milestones=table.milestones, seed=seed)

    def next(self, worker: str) -> Job | None:
        answer = self._process.call(op="next")
        return None if answer["trial"] is None else Job(answer["trial"], answer["params"], answer["until"])

    def report(self, trial: int, report: Report, worker: str) -> Decision:
        answer = self._process.call(op="report", trial=trial, milestone=report.milestone, value=report.val_loss)
        return Decision(answer["decision"])
