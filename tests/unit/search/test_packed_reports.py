"""Reports that are kept packed are the reports that they were."""

from __future__ import annotations

import math

import pytest

from sweep.search.curves import Curves
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.packed_reports import PackedReports
from sweep.search.strategy.protocol import CurveStatus
from trainer.contract import Report

REPORTS = (
    Report(1, 3, 40, 0, 2.5, 1.25, 1e-3, 900.5, 0.125, memory_gib=0.5, val_loss=None),
    Report(2, 6, 2**40, 1, math.inf, -0.0, 1e-300, 1.5, 7.0, val_loss=2.0),
    Report(3, 9, 120, 2, 0.1 + 0.2, 1.25, 0.0, 0.0, 7.5, val_loss=0.0, final=True),
)


@pytest.mark.parametrize("count", range(4))
def test_each_element_each_slice_and_the_whole_are_equal(count: int) -> None:
    reports = REPORTS[:count]
    packed = PackedReports(reports)
    assert len(packed) == count
    assert packed == reports
    assert reports == packed
    assert [packed[at] for at in range(-count, count)] == [reports[at] for at in range(-count, count)]
    assert (packed[1:], packed[::-1], (*packed, *packed)) == (reports[1:], reports[::-1], reports * 2)
    for at in (count, -count - 1):
        with pytest.raises(IndexError):
            packed[at]


def test_a_number_that_is_no_number_stays_one() -> None:
    packed = PackedReports([Report(1, 1, 1, 0, math.nan, math.nan, 0.0, 0.0, 0.0, val_loss=math.nan), *REPORTS])
    assert math.isnan(packed[0].loss)
    assert packed[0].val_loss is not None
    assert math.isnan(packed[0].val_loss)
    assert packed[1:] == REPORTS
    assert packed != REPORTS


def test_curves_pack_the_reports_of_a_trial_that_has_ended_also_those_that_come_later() -> None:
    curves = Curves(AsynchronousHalving(), 3)
    curves.begin(0, {})
    curves.add(0, REPORTS[0], "w0001")
    assert not isinstance(curves._curves[0].reports, PackedReports)
    curves.set_status(0, CurveStatus.COMPLETE)
    curves.add(0, REPORTS[1], "w0002")
    assert isinstance(curves._curves[0].reports, PackedReports)
    assert curves._curves[0].reports == REPORTS[:2]
    assert curves._curves[0].worker == "w0002"
