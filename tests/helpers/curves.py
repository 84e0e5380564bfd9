"""Learning curves of a synthetic table, and whole sweeps of them as hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st

from sweep.search.strategy.freeze_thaw import rungs
from sweep.search.strategy.protocol import Curve, CurveStatus
from tests.bench.search_bench.replay import report_of
from tests.bench.search_bench.tables import MILESTONES, Table, synthetic

LR, RANK, ACCUMULATION = "optimizer.lr", "model.lora_rank", "gradient_accumulation_steps"
TABLE = synthetic(4)


def curve(number: int, cell: tuple[int, int, int], reports: int, standing: CurveStatus, table: Table = TABLE) -> Curve:
    """A trial of a table's cell that has made some reports."""
    params = {RANK: table.ranks[cell[0]], LR: table.rates[cell[1]], ACCUMULATION: table.accumulations[cell[2]]}
    at = (*cell, number % table.seeds)
    made = tuple(report_of(table, at, m, table.rates[cell[1]]) for m in range(1, reports + 1))
    return Curve(number, params, made, standing)


@st.composite
def sweeps(draw: st.DrawFn) -> dict[int, Curve]:
    """The curves of a sweep at some moment: the last trial runs and has just reported."""
    cells = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11), st.integers(0, 3)), min_size=7, max_size=14))
    found = {}
    for number, cell in enumerate(cells[:-1]):
        standing = draw(
            st.sampled_from([CurveStatus.PAUSED, CurveStatus.PAUSED, CurveStatus.RUNNING, CurveStatus.COMPLETE])
        )
        reports = MILESTONES if standing is CurveStatus.COMPLETE else draw(st.integers(1, MILESTONES - 1))
        found[number] = curve(number, cell, reports, standing)
    last = len(cells) - 1
    found[last] = curve(last, cells[-1], draw(st.sampled_from(rungs(1, MILESTONES))), CurveStatus.RUNNING)
    return found
