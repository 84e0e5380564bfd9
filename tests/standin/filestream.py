"""The filestream: lines of a run's files by offset, its heartbeat, its end; the answer carries a requested stop."""

from __future__ import annotations

import json
import time

from tests.standin.model import Json, Run


def take(run: Run, body: Json) -> Json:
    """Enter what a client says of its run; lines sent twice under one offset count once."""
    run.heartbeat, run.begun_with = time.time(), ""
    for name, chunk in (body.get("files") or {}).items():
        if name == "wandb-summary.json":
            run.summary = json.loads(chunk["content"][-1])
            continue
        lines = run.lines.setdefault(name, {})
        for index, line in enumerate(chunk["content"]):
            lines[chunk["offset"] + index] = line
    run.uploaded += body.get("uploaded") or []
    run.preempting = run.preempting or bool(body.get("preempting"))
    if body.get("complete"):
        run.end(int(body.get("exitcode") or 0))
    answer: Json = {"exitcode": run.exit_code, "limits": {}}
    if run.stopped:
        run.stop_told.append(time.time())
        answer["stopped"] = True
    return answer
