"""What a run has logged, read back: in full, sampled by keys, and its console."""

from __future__ import annotations

import json

from tests.standin.filters import sampled
from tests.standin.model import Json
from tests.standin.operations import Call, operation
from tests.standin.operations.runs import find_run, in_project, run_node


@operation("RunSampledHistory", "SampledHistoryPage")
def _sampled(call: Call) -> Json:
    run = find_run(call)
    specs = call.get("specs") or [call.need("spec")]
    return in_project(call, run=run and {"sampledHistory": [sampled(run, json.loads(spec)) for spec in specs]})


@operation("RunFullHistory")
def _full(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        return in_project(call, run=None)
    count = int(call.get("samples") or 500)
    history, events = sampled(run, {"samples": count}), run.events[-count:]
    rows = {"history": [json.dumps(row) for row in history], "events": [json.dumps(row) for row in events]}
    return in_project(call, run={**run_node(call.store, run), **rows})


@operation("HistoryPage")
def _page(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        return in_project(call, run=None)
    rows = [row for row in run.history if call.need("minStep") <= row["_step"] < call.need("maxStep")]
    return in_project(call, run={"history": [json.dumps(row) for row in rows[: call.need("pageSize")]]})


@operation("RunParquetHistory")
def _parquet(call: Call) -> Json:
    """All of it is live: nothing was exported to parquet files."""
    run = find_run(call)
    return in_project(call, run=run and {"parquetHistory": {"parquetUrls": [], "liveData": run.history}})


@operation("RunConsoleLogPage", "RunConsoleLogTail")
def _console(call: Call) -> Json:
    run = find_run(call)
    if run is None:
        return in_project(call, run=None)
    start = int(call.get("after") or 0)
    lines = list(enumerate(run.output))
    some = lines[-call.get("last") :] if call.get("last") else lines[start : start + int(call.get("first") or 1000)]
    nodes = [{"number": n, "timestamp": None, "level": None, "label": None, "line": line} for n, line in some]
    end = some[-1][0] + 1 if some else start
    info = {"endCursor": str(end), "hasNextPage": end < len(lines)}
    edges = [{"node": node} for node in nodes]
    return in_project(call, run={"logLineCount": len(lines), "logLines": {"edges": edges, "pageInfo": info}})
