"""Part c of `python -m tests.bench.slurm`: how often a sweep asks the scheduler.

Invariant: counts what was called, by whomever, between the start and the end of one `sweep run`; with the queue's
default `query_seconds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.bench.slurm_lab import COUNTED, Calls
from tests.bench.slurm_sweep import Swept

QUERIES = ("squeue", "sacct")
WINDOW_SECONDS = 60.0
LONG_ENOUGH_SECONDS = 120.0


def calls_section(calls: Calls, sweep: Swept) -> tuple[str, dict[str, Any]]:
    made = calls.between(sweep.began, sweep.ended)
    seconds = sweep.ended - sweep.began
    counts = Counter(name for _, name in made)
    queries = busiest([at for at, name in made if name in QUERIES])
    numbers = {
        "seconds": seconds,
        "counts": {name: counts[name] for name in COUNTED},
        "per_minute": {name: counts[name] / seconds * 60 for name in COUNTED},
        "most_queries_in_60_seconds": queries,
        "calls": [[at - sweep.began, name] for at, name in made],
    }
    lines = [
        f"### c. Scheduler calls: at most {queries} of squeue and sacct within 60 s\n",
        "| command | calls | per minute |",
        "|---|---|---|",
        *(f"| {name} | {counts[name]} | {counts[name] / seconds * 60:.2f} |" for name in COUNTED),
        f"\nThe sweep took {seconds:.0f} s"
        + ("." if seconds >= LONG_ENOUGH_SECONDS else ": too short to say much; give it more --sweep-trials."),
    ]
    return "\n".join(lines), numbers


def busiest(times: Sequence[float]) -> int:
    """The largest number of these sorted times that fall within any 60 seconds."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= WINDOW_SECONDS:
            first += 1
        most = max(most, last - first + 1)
    return most
