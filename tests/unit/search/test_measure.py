"""How a strategy reads a metric: links, variances, and measurements at few milestones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.model.objectives import Direction, Objective, Spread
from sweep.search.strategy.encoding import axis
from sweep.search.strategy.forecast import forecast
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.gaussian_process import condition_on_means, fit
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.kernel import Points
from sweep.search.strategy.likelihood import DEFAULT
from sweep.search.strategy.measure import UNMEASURED, Measure, measure_of
from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from trainer.contract import Report

SHARE = Objective("em", Direction.MAXIMIZE, Spread.SHARE, rows=64)
OBJECTIVES = [Objective("m", way, spread, rows) for way in Direction for spread in Spread for rows in (0, 64)]


def report(milestone: int, final: bool = False, **scores: float) -> Report:
    numbers = (milestone, milestone, milestone, 0, 1.5, 1.0, 1e-3, 1.0, 1.0)
    return Report(*numbers, val_loss=1.25, final=final, scores=scores)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_loss_is_less_where_a_value_is_better_and_stands_for_it(
    objective: Objective, one: float, other: float
) -> None:
    measure = Measure(objective)
    better = objective.minimised(one) < objective.minimised(other)
    if abs(one - other) > 1e-9:
        assert (measure.loss_of(one) < measure.loss_of(other)) == better
    assert 0 < measure.loss_of(one) < math.inf
    drawn_in = 1.0 / 64 if objective.spread is Spread.SHARE else 1e-9
    assert measure.value_of(measure.loss_of(one)) == pytest.approx(one, abs=drawn_in)


@given(st.floats(allow_nan=True))
def test_a_loss_stays_as_it_is(value: float) -> None:
    for name in ("loss", "val_loss", "auto"):
        measure = measure_of(name, None)
        same = measure.loss_of(value)
        assert same == value or (math.isnan(same) and math.isnan(value))
        assert measure.variance(value) == 0.0
    assert Measure(Objective("val_loss")).value(replace(report(1), val_loss=None)) == 1.5


@pytest.mark.parametrize("share", [0.0, 1.0, 0.5, 1 / 64])
def test_the_variance_of_a_share_is_that_of_its_logit(share: float) -> None:
    rows, rng = 64, np.random.default_rng(0)
    measure = Measure(SHARE)
    assert 0 < measure.variance(share) < 1
    logs = [math.log(measure.loss_of(count / rows)) for count in rng.binomial(rows, 0.4, 4000)]
    assert float(np.var(logs)) == pytest.approx(measure.variance(0.4), rel=0.1)
    assert Measure(replace(SHARE, rows=0)).variance(share) == 0.0


def test_measurements_stand_at_their_places_and_what_is_missing_weighs_nothing() -> None:
    measure = Measure(replace(SHARE, at=(2, 4)))
    assert measure.positions(6) == 3, "the end is measured in any case"
    losses, variances = measure.read([report(2, em=0.25), report(5), report(6, True, em=0.5)], 6)
    assert losses == (measure.loss_of(0.25), measure.loss_of(0.25), measure.loss_of(0.5))
    assert (variances[0], variances[1], variances[2]) == (measure.variance(0.25), UNMEASURED, measure.variance(0.5))
    assert measure.read([report(1)], 6) == ((), ())
    late, _ = measure.read([report(7, True, em=0.5)], 6)
    assert len(late) == 3, "a trial that ends a little late ends at the end"


@pytest.mark.parametrize(("every", "at", "rungs"), [(1, (), [2, 6]), (4, (), [4, 8]), (1, (5, 9), [5, 9])])
def test_a_rung_is_at_a_milestone_that_has_the_metric(every: int, at: tuple[int, ...], rungs: list[int]) -> None:
    strategy = AsynchronousHalving("em", objective=replace(SHARE, every=every, at=at))
    assert strategy._rungs(12) == rungs


def test_a_maximised_metric_pauses_the_lowest_and_promotes_the_highest() -> None:
    strategy = AsynchronousHalving("em", 1, 2, SHARE)
    curves = {n: Curve(n, {}, (report(1, em=v),), CurveStatus.PAUSED) for n, v in enumerate((0.2, 0.9, 0.5))}
    curves[3] = Curve(3, {}, (report(1, em=0.1),), CurveStatus.RUNNING)
    verdict = strategy.verdict(3, curves, 6)
    assert verdict is not None
    assert (verdict.value, verdict.basis["bar"]) == (0.1, 0.5)
    promotion = strategy.promote(curves, 6)
    assert promotion is not None
    assert (promotion.trial, promotion.basis["value"]) == (1, 0.9)


# --- the variance in the model -----------------------------------------------------------------------------------

RATES = tuple(float(rate) for rate in np.logspace(-5, -1, 9))


def lucky(rows: int) -> list[TrialData]:
    """Complete trials over a smooth optimum at the middle rate; one at its side was lucky."""
    measure = Measure(replace(SHARE, rows=rows))
    trials = []
    for number, rate in enumerate(RATES * 2):
        at = number % len(RATES)
        share = 0.5 - 0.08 * abs(at - 4) + (0.2 if number == 2 else 0.0)
        losses = tuple(measure.loss_of(share * progress) for progress in (0.5, 0.8, 1.0))
        variances = tuple(measure.variance(share * progress) for progress in (0.5, 0.8, 1.0))
        trials.append(TrialData(number, {"lr": rate}, losses, complete=True, variances=variances if rows else ()))
    return trials


def test_a_trial_is_not_preferred_for_a_lucky_row() -> None:
    axes = (axis("lr", RATES),)
    with_variance, without = forecast(lucky(64), axes, 3), forecast(lucky(0), axes, 3)
    assert with_variance is not None
    assert without is not None
    assert without.incumbent.end.trial[0] == 2, "the luckiest measurement"
    assert with_variance.incumbent.end.trial[0] % len(RATES) in (3, 4, 5), "by what its neighbours say"
    lucky_one = next(trial for trial in lucky(64) if trial.number == 2)
    assert with_variance.observations.gap(lucky_one) > 0 == without.observations.gap(lucky(0)[2])


def test_many_rows_say_what_the_measurement_says() -> None:
    seen = forecast(lucky(1_000_000), (axis("lr", RATES),), 3)
    assert seen is not None
    assert seen.incumbent.end.trial[0] == 2


@given(st.integers(0, 2**32 - 1))
def test_no_known_variance_and_one_of_nothing_give_the_same_model(seed: int) -> None:
    rng, n = np.random.default_rng(seed), 12
    points = Points(rng.random((n, 2)), np.ones(n), np.arange(n), np.zeros((n, 0)), np.zeros(n))
    y = points.x @ np.array([0.2, -0.1]) + 0.01 * rng.standard_normal(n)
    plain, zero = fit(points, y, DEFAULT), fit(points, y, DEFAULT, known=np.zeros(n))
    assert np.allclose(plain.predict(points)[0], zero.predict(points)[0])
    noisy = fit(points, y, DEFAULT, known=np.full(n, 1e-2))
    assert (
        float(np.abs(noisy.predict(points)[0] - y).mean()) >= float(np.abs(plain.predict(points)[0] - y).mean()) - 1e-9
    )
    further = condition_on_means(noisy, points.rows(np.array([0, 1])))
    assert further.scale == noisy.scale
    assert further.known is not None
    assert len(further.known) == n + 2


def test_a_reason_names_the_metric_as_it_is_measured() -> None:
    strategy = FreezeThaw("em", objective=SHARE, design=2)
    curves = {
        n: Curve(n, {"lr": rate}, tuple(report(m, m == 6, em=0.6 - 0.1 * n) for m in range(1, 7)), CurveStatus.COMPLETE)
        for n, rate in enumerate(RATES[:4])
    }
    curves[4] = Curve(4, {"lr": RATES[8]}, tuple(report(m, em=0.02) for m in (1, 2)), CurveStatus.RUNNING)
    verdict = strategy.verdict(4, curves, 6)
    assert verdict is not None
    assert verdict.value == 0.02
    assert "final em" in verdict.reason
    assert 0.0 <= verdict.basis["end"] < verdict.basis["best"] <= 0.7
