"""The adapters' side of the replay's protocol: JSON lines over stdin and stdout; standard library only.

A request is {"op": "start", "arm", "space", "milestones", "seed"}, {"op": "next"} or {"op": "report", "trial",
"milestone", "value"}. Answers: {}, {"trial", "params", "until"} (trial null: nothing to train before another report),
{"decision": "go on" | "pause" | "stop"}. An exception answers {"error": text} and ends the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Peer(Protocol):
    """A peer's search on one table."""

    def next(self) -> Mapping[str, Any]: ...

    def report(self, trial: int, milestone: int, value: float) -> str: ...


Make = Callable[[str, Mapping[str, Any], int, int], Peer]  # arm, space, milestones, seed


def serve(make: Make) -> None:
    """Answer requests until stdin ends. What the peer's library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "start":
                peer = make(request["arm"], request["space"], request["milestones"], request["seed"])
                answer: Mapping[str, Any] = {}
            elif peer is None:
                raise ValueError("not started")
            elif request["op"] == "next":
                answer = peer.next()
            else:
                answer = {"decision": peer.report(request["trial"], request["milestone"], request["value"])}
        except Exception as error:  # the other side says which arm failed, and why
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise
        answers.write(json.dumps(answer) + "\n")
