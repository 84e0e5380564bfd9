"""The strategy that freezes and thaws, its surrogate, and the sampler that shares it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.model.states import Ruling
from sweep.search.forecast_sampler import ForecastSampler
from sweep.search.strategy.acquisition import acquisition, log_improvement
from sweep.search.strategy.encoding import axes_of, axis, encode
from sweep.search.strategy.forecast import forecast
from sweep.search.strategy.freeze_thaw import FreezeThaw, rungs
from sweep.search.strategy.gaussian_process import condition_on_means, fit
from sweep.search.strategy.kernel import Points
from sweep.search.strategy.likelihood import DEFAULT
from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from tests.bench.search_bench.ours import our_arms
from tests.bench.search_bench.replay import Workers, replay
from tests.bench.search_bench.tables import MILESTONES
from tests.helpers.curves import LR, TABLE, curve, sweeps


@settings(max_examples=25, deadline=None)
@given(sweeps())
def test_a_stop_leaves_no_plausible_end_that_reaches_the_best(curves: dict[int, Curve]) -> None:
    verdict = FreezeThaw("val_loss").verdict(max(curves), curves, MILESTONES)
    if verdict is None or verdict.ruling is Ruling.PAUSE:
        return
    ends = [c.reports[-1].val_loss or math.inf for c in curves.values() if c.status is CurveStatus.COMPLETE]
    low = math.exp(math.log(verdict.basis["end"]) - 4.0 * verdict.basis["end_sd"])
    assert ends
    assert low > min(ends)


@settings(max_examples=25, deadline=None)
@given(sweeps(), st.randoms(use_true_random=False))
def test_the_order_of_the_curves_says_nothing(curves: dict[int, Curve], random: np.random.Generator) -> None:
    strategy, numbers = FreezeThaw("val_loss"), list(curves)
    random.shuffle(numbers)
    mixed = {number: curves[number] for number in numbers}
    assert FreezeThaw("val_loss").verdict(max(curves), mixed, MILESTONES) == strategy.verdict(
        max(curves), curves, MILESTONES
    )
    assert FreezeThaw("val_loss").promote(mixed, MILESTONES) == strategy.promote(curves, MILESTONES)


@settings(max_examples=25, deadline=None)
@given(sweeps())
def test_what_promises_most_is_neither_paused_nor_left_behind(curves: dict[int, Curve]) -> None:
    strategy, last = FreezeThaw("val_loss"), max(curves)
    verdict = strategy.verdict(last, curves, MILESTONES)
    if verdict is not None and verdict.ruling is Ruling.PAUSE:
        assert verdict.basis["promise"] < verdict.basis["other"]
    promotion = strategy.promote(curves, MILESTONES)
    if promotion is not None:
        assert curves[promotion.trial].status is CurveStatus.PAUSED
        assert promotion.basis["promise"] >= promotion.basis["new"]


def test_a_loss_that_is_not_finite_stops_at_once() -> None:
    curves = {0: curve(0, (2, 4, 0), 5, CurveStatus.RUNNING)}
    broken = replace(curves[0].reports[-1], val_loss=math.nan)
    curves[0] = replace(curves[0], reports=(*curves[0].reports[:-1], broken))
    verdict = FreezeThaw("val_loss").verdict(0, curves, MILESTONES)
    assert verdict is not None
    assert verdict.ruling is Ruling.STOP


def test_the_design_comes_first_and_the_last_report_is_never_judged() -> None:
    strategy = FreezeThaw("val_loss", design=3)
    curves = {0: curve(0, (2, 4, 0), 1, CurveStatus.RUNNING)}
    verdict = strategy.verdict(0, curves, MILESTONES)
    assert verdict is not None
    assert verdict.ruling is Ruling.PAUSE
    assert strategy.promote({0: replace(curves[0], status=CurveStatus.PAUSED)}, MILESTONES) is None
    assert strategy.verdict(0, {0: curve(0, (2, 4, 0), MILESTONES, CurveStatus.RUNNING)}, MILESTONES) is None


@settings(max_examples=25, deadline=None)
@given(sweeps())
def test_nothing_is_paused_that_would_go_on_at_once(curves: dict[int, Curve]) -> None:
    strategy, last = FreezeThaw("val_loss"), max(curves)
    verdict = strategy.verdict(last, curves, MILESTONES, new_allowed=False)
    if verdict is None:
        return
    paused = {**curves, last: replace(curves[last], status=CurveStatus.PAUSED)}
    promotion = strategy.finish(paused, MILESTONES)
    tied = 0.0 < verdict.basis.get("other", math.inf) - verdict.basis.get("promise", 0.0) < 1e-9  # by rounding
    assert promotion is None or promotion.trial != last or tied


def test_a_new_trial_that_cannot_be_had_pauses_nothing() -> None:
    cells = [(5, 1, 0), (3, 4, 3), (0, 10, 0), (1, 2, 1), (2, 5, 1), (4, 3, 0), (2, 4, 2)]
    curves = {n: curve(n, cell, 3, CurveStatus.PAUSED) for n, cell in enumerate(cells)}
    strategy = FreezeThaw("val_loss")
    said = {}
    for number, one in curves.items():
        running = {**curves, number: replace(one, status=CurveStatus.RUNNING)}
        said[number] = [strategy.verdict(number, running, MILESTONES, new_allowed=new) for new in (True, False)]
    assert all(with_new is not None for with_new, _ in said.values()), "a new one promises more than any of them"
    assert sum(without is None for _, without in said.values()) == 1, "the best of them goes on where there is none"


def test_where_no_trial_may_be_asked_for_the_most_promising_paused_one_goes_on() -> None:
    cells = [(5, 1, 0), (3, 4, 3), (0, 10, 0), (1, 2, 1)]
    paused = {n: curve(n, cell, 6, CurveStatus.PAUSED) for n, cell in enumerate(cells)}
    found = FreezeThaw("val_loss").finish(paused, MILESTONES)
    assert found is not None
    assert FreezeThaw("val_loss").promote(paused, MILESTONES) is None  # of the design, two are missing
    done = {**paused, 4: curve(4, (3, 4, 3), MILESTONES, CurveStatus.COMPLETE)}  # the table's best
    late = FreezeThaw("val_loss").finish({n: done[n] for n in (2, 4)}, MILESTONES)
    assert late is None


def test_rungs_ascend_below_the_end() -> None:
    assert rungs(1, 24) == [1, 2, 3, 4, 6, 8, 11, 15]
    assert rungs(3, 3) == [3]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["ours", "ours (loss alone)"])
def test_on_a_parametric_family_trials_are_promoted_and_the_best_is_found(arm: str) -> None:
    """The family is drawn by our own code; a limit of 40 is a third of what random search needs on it at the median."""
    method = our_arms()[arm](TABLE, 1)
    sweep = replay(TABLE, method, Workers(limit=40.0), 1)
    assert sweep.found
    again = replay(TABLE, our_arms()[arm](TABLE, 1), Workers(limit=40.0), 1)
    assert (again.cost, again.trace) == (sweep.cost, sweep.trace)


def test_several_workers_try_different_configurations() -> None:
    method = our_arms()["ours"](TABLE, 2)
    jobs = [method.next(str(place)) for place in range(8)]
    seen = {tuple(job.params.values()) for job in jobs if job is not None}
    assert len(seen) == 8


def test_axes_are_logarithmic_where_values_span_much() -> None:
    found = axes_of([{"a": 2, "b": "x", "c": 1, "d": 0.0}, {"a": 64, "b": "y", "c": 1, "d": 0.1}])
    assert [(one.key, one.log, one.categories) for one in found] == [
        ("a", True, ()),
        ("b", False, ("x", "y")),
        ("d", False, ()),
    ]
    assert encode([axis("a", [2, 8, 32])], [{"a": 8}, {}])[:, 0].tolist() == pytest.approx([0.5, 0.5])


@given(st.floats(-30, 5))
def test_log_improvement_is_the_logarithm_of_the_expected_improvement(z: float) -> None:
    found = float(log_improvement(np.array([z]))[0])
    if z > -5:
        pdf, cdf = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-z / math.sqrt(2))
        assert found == pytest.approx(math.log(z * cdf + pdf), abs=1e-3)
    lower = float(log_improvement(np.array([z - 0.5]))[0])
    assert lower < found


def test_a_complete_trial_is_predicted_where_it_ended() -> None:
    known = [TrialData(n, {LR: TABLE.rates[n]}, tuple(TABLE.val_loss[3, n, 0, 0]), complete=True) for n in range(2, 8)]
    seen = forecast(known, (axis(LR, TABLE.rates),), MILESTONES)
    assert seen is not None
    best = min(known, key=lambda one: one.losses[-1])
    mean, sd = seen.ends(seen.observations.ends([best]))
    assert math.exp(float(mean[0])) == pytest.approx(best.losses[-1], rel=0.01)
    assert float(sd[0]) < 0.02
    assert forecast(known[:1], (), MILESTONES) is None


@given(st.floats(-2.0, 50.0))
def test_an_end_far_behind_stands_for_a_loss_that_was_seen(mean: float) -> None:
    """What lies far behind is squashed: undone, it would be beyond all numbers."""
    known = [TrialData(n, {LR: TABLE.rates[n]}, tuple(TABLE.val_loss[3, n, 0, 0]), complete=True) for n in range(2, 8)]
    seen = forecast(known, (axis(LR, TABLE.rates),), MILESTONES)
    assert seen is not None
    worst = max(max(one.losses) for one in known)
    assert math.exp(mean) * (1 - 1e-9) <= seen.loss(mean) <= max(worst, math.exp(mean)) * (1 + 1e-9)
    assert seen.loss(mean) <= seen.loss(mean + 0.01)


def test_where_others_run_the_one_that_looks_best_goes_on_though_none_is_complete() -> None:
    """It cannot better itself: measured against its own end it would be paused for being the best."""
    known = [TrialData(n, {LR: TABLE.rates[n]}, tuple(TABLE.val_loss[3, n, 0, 0][:15])) for n in range(2, 8)]
    seen = forecast(known, (axis(LR, TABLE.rates),), MILESTONES)
    assert seen is not None
    front = int(seen.ends(seen.observations.ends(known))[0].argmin())
    others, rest = known[:front] + known[front + 1 : -1], [known[front], known[-1]]
    alone, ends = acquisition(seen), seen.observations.ends(rest)
    value = alone.assuming(others).value(ends, np.full(2, 9.0))
    assert value[0] > value[1]
    assert alone.value(ends, np.full(2, 9.0))[0] < value[0]
    done = forecast([*known[:-1], replace(known[-1], complete=True)], seen.observations.axes, MILESTONES)
    assert done is not None
    assert done.runner_up is None


def test_conditioning_on_means_keeps_them_and_takes_the_deviation_away() -> None:
    rng = np.random.default_rng(3)
    seen = Points(rng.random((6, 2)), np.ones(6), np.arange(6), np.zeros((6, 0)), np.zeros(6))
    model = fit(seen, rng.random(6), DEFAULT)
    at = Points(np.array([[0.3, 0.9]]), np.ones(1), np.array([-1]), np.zeros((1, 0)), np.zeros(1))
    after = condition_on_means(model, at)
    (before_mean, before_sd), (mean, sd) = model.predict(at), after.predict(at)
    assert mean == pytest.approx(before_mean, abs=1e-3)
    assert sd < 0.5 * before_sd


def test_the_sampler_proposes_by_the_study_and_the_seed_alone() -> None:
    def proposed(seed: int) -> list[tuple[object, ...]]:
        study = optuna.create_study(sampler=ForecastSampler(4, design=3, seed=seed))
        for _ in range(5):
            trial = study.ask()
            params = (
                trial.suggest_categorical("rank", [2, 8, 32]),
                trial.suggest_float("lr", 1e-5, 1e-1, log=True),
                trial.suggest_int("steps", 1, 9),
                trial.suggest_categorical("kind", ["a", "b"]),
            )
            for milestone in range(1, 5):
                trial.report(1.0 + abs(math.log10(params[1]) + 3) + 1 / milestone, milestone)
            study.tell(trial, 1.25 + abs(math.log10(params[1]) + 3))
        return [tuple(trial.params.values()) for trial in study.trials]

    assert proposed(5) == proposed(5)
    assert proposed(5) != proposed(6)


def test_a_prior_draws_the_design_to_it() -> None:
    def rates(prior: dict[str, dict[str, float]]) -> list[float]:
        study = optuna.create_study(sampler=ForecastSampler(4, design=30, prior=prior, seed=2))
        found = []
        for _ in range(20):
            trial = study.ask()
            found.append(abs(math.log10(trial.suggest_float("lr", 1e-6, 1.0, log=True) / 1e-3)))
        return found

    assert np.mean(rates({"lr": {"centre": 1e-3, "spread": 0.2}})) < np.mean(rates({}))


@pytest.mark.parametrize(
    "arguments",
    [
        {"design": 1},
        {"candidates": 0},
        {"prior": {"lr": {"centre": 0, "spread": 1}}},
        {"prior": {"lr": {"centre": 1}}},
        {"prior": {"lr": 3}},
        {"prior": {"lr": {"centre": "a", "spread": 1}}},
    ],
)
def test_a_sampler_refuses_what_it_cannot_use(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ForecastSampler(**arguments)  # type: ignore[arg-type]
