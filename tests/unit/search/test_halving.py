"""Asynchronous successive halving over rungs that are kept sorted, against its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.model.objectives import Objective
from sweep.model.states import Ruling
from sweep.search.curves import Curves
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Curve, CurveStatus
from sweep.search.strategy.rungs import rung_of
from trainer.contract import Report

MILESTONES = 9
VALUES = st.sampled_from([0.5, 1.0, 1.5, 2.0, math.inf, math.nan])


def report(milestone: int, value: float) -> Report:
    return Report(milestone, milestone, 10 * milestone, 0, value, 1.0, 1e-3, 100.0, 0.5)


def defined_verdict(rule: AsynchronousHalving, number: int, curves: Mapping[int, Curve]) -> tuple[float, int] | None:
    """The bar that a trial fails and how many have reached the rung, read from all curves."""
    last = curves[number].reports[-1]
    rungs = [m for m in range(1, MILESTONES) if is_rung(rule, m)]
    if last.milestone not in rungs:
        return None
    there = sorted(at(c, last.milestone) for c in curves.values() if not math.isnan(at(c, last.milestone)))
    bar = there[max(1, len(there) // rule.reduction_factor) - 1]
    return None if at(curves[number], last.milestone) <= bar else (bar, len(there))


def defined_promotion(rule: AsynchronousHalving, curves: Mapping[int, Curve]) -> tuple[int, int] | None:
    """The trial that is promoted, and from which rung."""
    for rung in reversed([m for m in range(1, MILESTONES) if is_rung(rule, m)]):
        ranked = sorted((at(c, rung), c.number) for c in curves.values() if not math.isnan(at(c, rung)))
        for _, number in ranked[: len(ranked) // rule.reduction_factor]:
            if curves[number].status is CurveStatus.PAUSED and curves[number].reports[-1].milestone == rung:
                return number, rung
    return None


def is_rung(rule: AsynchronousHalving, milestone: int) -> bool:
    power = math.log(milestone / rule.min_resource, rule.reduction_factor)
    return power > -1e-9 and abs(power - round(power)) < 1e-9


def at(curve: Curve, milestone: int) -> float:
    """NaN where it has not reported; what is not finite counts as infinite."""
    for one in curve.reports:
        if one.milestone == milestone:
            return one.loss if math.isfinite(one.loss) else math.inf
    return math.nan


@given(
    st.builds(AsynchronousHalving, st.just("loss"), st.integers(1, 3), st.integers(2, 4)),
    st.lists(st.tuples(st.integers(0, 7), VALUES, st.integers(1, 2)), max_size=60),
)
def test_kept_rungs_answer_as_the_definition_does(
    rule: AsynchronousHalving, events: list[tuple[int, float, int]]
) -> None:
    """Trials report as they come, some milestones are skipped, and a promotion is asked for after each report."""
    plain: dict[int, Curve] = {}
    kept = Curves(rule, MILESTONES)
    for number, value, step in events:
        if number not in plain:
            plain[number] = Curve(number, {}, (), CurveStatus.RUNNING)
            kept.begin(number, {})
        curve = plain[number]
        milestone = (curve.reports[-1].milestone if curve.reports else 0) + step
        if curve.status is CurveStatus.RUNNING and milestone <= MILESTONES:
            plain[number] = replace(curve, reports=(*curve.reports, report(milestone, value)))
            kept.add(number, report(milestone, value))
            expected, found = defined_verdict(rule, number, plain), kept.verdict(number)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert (found.basis["bar"], found.basis["reached"]) == expected
                assert found.ruling is Ruling.PAUSE
                plain[number] = replace(plain[number], status=CurveStatus.PAUSED)
            assert rule.verdict(number, plain, MILESTONES) == found, "and so it does on any other mapping"
        promoted, wanted = kept.promote(new_allowed=True), defined_promotion(rule, plain)
        assert (promoted and (promoted.trial, promoted.basis["rung"])) == wanted
        if promoted is not None:
            plain[promoted.trial] = replace(plain[promoted.trial], status=CurveStatus.RUNNING)


def test_a_trial_that_is_begun_anew_leaves_its_rungs() -> None:
    kept = Curves(AsynchronousHalving("loss", 1, 2), MILESTONES)
    for number, value in enumerate((1.0, 2.0)):
        kept.begin(number, {})
        kept.add(number, report(1, value))
        kept.verdict(number)
    kept.begin(0, {})
    kept.begin(2, {})
    kept.add(2, report(1, 3.0))
    found = kept.verdict(2)
    assert found is not None
    assert (found.basis["reached"], found.basis["bar"]) == (2.0, 2.0)
    assert rung_of({}, Objective("loss"), 1).reached == []


@pytest.mark.parametrize("arguments", [{"min_resource": 0}, {"reduction_factor": 1}])
def test_what_makes_no_rungs_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        AsynchronousHalving("loss", **arguments)  # type: ignore[arg-type]
