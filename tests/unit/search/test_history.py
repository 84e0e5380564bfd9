"""What a sampler is shown of a study."""

from __future__ import annotations

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.model.objectives import Direction, Objective
from sweep.search.history import BEST, History, SharedSearchSpace

KINDS: tuple[dict[str, BaseDistribution], ...] = (
    {"b": CategoricalDistribution(("x", "y")), "a": FloatDistribution(1e-5, 1e-1, log=True)},
    {"a": FloatDistribution(1e-5, 1e-1, log=True)},
    {"a": FloatDistribution(1e-4, 1e-1, log=True), "b": CategoricalDistribution(("x", "y"))},
)
VALUES = {"a": 1e-3, "b": "y"}


def trial(number: int, kind: int, state: TrialState = TrialState.RUNNING, value: float = 1.0) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value if state is TrialState.COMPLETE else None,
        params={name: VALUES[name] for name in KINDS[kind]},
        distributions=KINDS[kind],
        intermediate_values={1: value},
    )
    made.number = number
    return made


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["running", "paused", "pruned", "complete", "fail"]))))
def test_the_space_is_the_one_that_optuna_finds_by_comparing(events: list[tuple[int, str]]) -> None:
    """Trials come, pause, go on and end; each number has one kind of parameters, as under a conditional space."""
    history = History(None, Objective("val_loss"))
    for number, event in events:
        kind = (0, 0, 1, 0, 2, 0, 0, 0, 1, 0)[number]
        match event:
            case "running":
                history.add_running(trial(number, kind))
            case "paused":
                history.add_paused(trial(number, kind))
            case _:
                history.add_ended(trial(number, kind, TrialState[event.upper()]))
        expected = intersection_search_space(history.view(), include_pruned=True)
        assert SharedSearchSpace(history).calculate(optuna.create_study()) == expected
        assert list(history.shared_distributions()) == list(expected)


@given(st.lists(st.floats(-5, 5), min_size=80, max_size=120), st.sampled_from(Direction))
def test_a_bound_keeps_the_best_and_the_newest(values: list[float], direction: Direction) -> None:
    objective = Objective("m", direction)
    history = History(BEST + 10, objective)
    for number, value in enumerate(values):
        history.add_ended(trial(number, 0, TrialState.COMPLETE, value))
    history.add_running(trial(len(values), 0))
    shown = [one.number for one in history.view()]
    best = sorted(range(len(values)), key=lambda n: (objective.minimised(values[n]), n))[:BEST]
    assert shown == sorted({*best, *range(len(values) - 10, len(values) + 1)})


def test_reports_that_reach_a_paused_trial_later_leave_its_place_as_it_was() -> None:
    """Optuna adds a report of an open trial to the very mapping that the stored trial has, after a restart."""
    history = History(None, Objective("val_loss"))
    paused = trial(0, 0)
    paused.intermediate_values = {}
    history.add_paused(paused)
    paused.intermediate_values[4] = 1.0  # held back until the trial was told
    history.add_ended(trial(0, 0, TrialState.PRUNED))
    assert [shown.state for shown in history.view()] == [TrialState.PRUNED]
