"""What the records say: a table for each table of curves and number of workers, and the plot of regret.

Invariants: a sweep that was missed counts with an infinite cost, so that a median is what half of all sweeps needed; a
cut sweep counts as missed. Regret is that of the best complete trial, relative to the oracle; before the first it has
none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.search_bench.arms import SETTINGS
from tests.bench.search_bench.plot import Line, Panel, svg
from tests.bench.search_bench.records import Record

HEAD = "| method | sweeps | cost, median | mean | 90 % | wall clock, median | missed | of them cut | ms a proposal |"


@dataclass(frozen=True)
class Row:
    """An arm on a table with a number of workers; costs in full-trial equivalents, times in full trials."""

    table: str
    setting: str
    arm: str
    costs: tuple[float, ...]
    times: tuple[float, ...]
    cut: int
    milliseconds: float

    @property
    def missed(self) -> int:
        return sum(1 for cost in self.costs if math.isinf(cost))

    @property
    def cost(self) -> float:
        return float(np.median(self.costs))

    @property
    def time(self) -> float:
        return float(np.median(self.times))

    @property
    def line(self) -> str:
        cells = [
            self.arm,
            len(self.costs),
            _number(self.cost),
            _number(float(np.mean(self.costs))),
            _number(float(np.quantile(self.costs, 0.9, method="higher"))),
            _number(self.time, 2),
            self.missed,
            self.cut,
            _number(self.milliseconds),
        ]
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


def rows(records: Sequence[Record]) -> list[Row]:
    """The arms that ran, cheapest first within a table and setting."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if "error" not in record:
            groups.setdefault((record["table"], record["setting"], record["arm"]), []).append(record)
    summaries = [
        Row(
            *key,
            tuple(one["cost"] if one["found"] else math.inf for one in group),
            tuple(one["time"] if one["found"] else math.inf for one in group),
            sum(bool(one["cut"]) for one in group),
            1e3 * sum(one["seconds"] for one in group) / max(1, sum(one["trials"] for one in group)),
        )
        for key, group in groups.items()
    ]
    settings = list(SETTINGS)
    return sorted(summaries, key=lambda row: (row.table, settings.index(row.setting), row.cost, row.missed))


def show(records: Sequence[Record], docs: Path | None) -> None:
    """Print the tables; with a prefix, write them to `<docs>-table.md` and the plots to `<docs>-<table>.svg`."""
    lines = []
    summaries = rows(records)
    for table, setting in dict.fromkeys((row.table, row.setting) for row in summaries):
        lines += ["", f"**{table}, {setting}**", "", HEAD, "|" + " --- |" * 9]
        lines += [row.line for row in summaries if (row.table, row.setting) == (table, setting)]
    lines += ["", *_failures(records)]
    print("\n".join(lines))
    if docs is not None:
        Path(f"{docs}-table.md").write_text("\n".join(lines).strip() + "\n")
        for table in dict.fromkeys(row.table for row in summaries):
            Path(f"{docs}-{table}.svg").write_text(svg(_panels(records, table), bold="ours"))


def _failures(records: Sequence[Record]) -> list[str]:
    """Which arms failed in how many of their sweeps, and with what."""
    tried = Counter(record["arm"] for record in records)
    failed = [record for record in records if "error" in record]
    counts = Counter((record["arm"], record["error"]) for record in failed)
    return [f"{arm} failed in {count} of {tried[arm]} sweeps: {error}" for (arm, error), count in counts.items()]


def _panels(records: Sequence[Record], table: str) -> list[Panel]:
    panels = []
    ran = {r["setting"] for r in records if r["table"] == table and "error" not in r}
    settings = [setting for setting in SETTINGS if setting in ran]
    for axis, column in (("full trials trained", 0), ("wall clock, full trials", 1)):
        for setting in settings:
            lines = []
            for arm in dict.fromkeys(r["arm"] for r in records if "error" not in r):
                traces = [
                    [(point[column], point[2]) for point in r["trace"]]
                    for r in records
                    if (r["table"], r["setting"], r["arm"]) == (table, setting, arm) and "error" not in r
                ]
                if traces:
                    lines.append(Line(arm, _median_regret(traces)))
            panels.append(Panel(f"{table}, {setting}", axis, lines))
    return panels


def _median_regret(traces: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The median over sweeps of the regret reached at each cost or time, where half of the sweeps have any."""
    at = np.geomspace(0.5, 400.0, 60)
    reached = np.array([[min((v for c, v in trace if c <= x), default=math.inf) for x in at] for trace in traces])
    median = np.median(reached, axis=0)
    return [(float(x), float(max(y, 1e-3))) for x, y in zip(at, median, strict=True) if math.isfinite(y)]


def _number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
