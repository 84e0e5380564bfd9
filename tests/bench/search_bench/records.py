"""Runs sweeps and keeps what came of them, one JSON line a sweep.

Invariants: a line is appended whole once its sweep has ended; a sweep that has a line is not run again; lines of
several runs may stand in one file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.search_bench import arms
from tests.bench.search_bench.peer_arms import PeerError
from tests.bench.search_bench.replay import replay
from tests.bench.search_bench.tables import Table

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run: every arm with every setting and seed, each sweep within the limits."""

    arms: Sequence[str]
    settings: Sequence[str]
    seeds: range
    limit: float
    seconds: float


def read(folder: Path) -> list[Record]:
    """All records of a folder, packed ones too."""
    texts = [path.read_text() for path in sorted(folder.glob("*.jsonl"))]
    texts += [gzip.decompress(path.read_bytes()).decode() for path in sorted(folder.glob("*.jsonl.gz"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def run(tables: Sequence[Table], plan: Plan, interpreters: Mapping[str, str], folder: Path) -> None:
    """Run what has no record yet. A sweep that a peer's library fails in gets a record with its error."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {(r["table"], r["arm"], r["setting"], r["seed"]) for r in read(folder)}
    for table in tables:
        for setting in plan.settings:
            for name in plan.arms:
                seeds = [seed for seed in plan.seeds if (table.name, name, setting, seed) not in known]
                if seeds:
                    _run_arm(table, replace(plan, arms=[name], settings=[setting]), seeds, interpreters, folder)


def _run_arm(table: Table, plan: Plan, left: list[int], interpreters: Mapping[str, str], folder: Path) -> None:
    """One arm with one setting."""
    (name,), (setting,) = plan.arms, plan.settings
    workers = replace(arms.SETTINGS[setting], limit=plan.limit, max_seconds=plan.seconds)
    while left:  # a peer's process that failed is started anew
        with arms.arm(name, interpreters) as make, (folder / "sweeps.jsonl").open("a") as file:
            failed = False
            while left and not failed:
                seed = left.pop(0)
                record: Record = {"table": table.name, "arm": name, "setting": setting, "seed": seed}
                try:
                    record |= asdict(replay(table, make(table, seed), workers, seed))
                except PeerError as error:
                    record |= {"error": str(error)[:300]}
                    failed = True
                file.write(json.dumps(record, default=float) + "\n")
                file.flush()
