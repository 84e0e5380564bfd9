"""The plots of a report, from studies made by hand and from a recorded sweep."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from sweep.report.axes import Axis, axes_of, points_of, value_axis
from sweep.report.figures import plots
from sweep.report.plot import PRUNED, SCALE, colour_at
from sweep.report.trial_plots import ABSENT_SHARE, PRUNED_SHARE, parallel_figure, slice_figure, worst_limit
from tests.helpers.recorded import METRIC, finished_study

RATE = FloatDistribution(1e-4, 1e-2, log=True)
KIND = CategoricalDistribution(("<b>", "a&b"))
STEPS = IntDistribution(1, 9)


def study_of(*trials: tuple[TrialState, list[float], dict[str, Any]]) -> optuna.Study:
    """A study of trials with these states, reports and hyperparameters."""
    distributions: dict[str, BaseDistribution] = {"optimizer.lr": RATE, "kind": KIND, "steps": STEPS}
    study = optuna.create_study()
    for state, reports, params in trials:
        study.add_trial(
            create_trial(
                state=state,
                value=reports[-1] if state is TrialState.COMPLETE else None,
                params=params,
                distributions={key: distributions[key] for key in params},
                intermediate_values=dict(enumerate(reports, start=1)),
            )
        )
    return study


STUDY = study_of(
    (TrialState.COMPLETE, [4.0, 1.0], {"optimizer.lr": 1e-3, "kind": "a&b", "steps": 5}),
    (TrialState.COMPLETE, [3.0, 2.0], {"optimizer.lr": 1e-4, "kind": "<b>", "steps": 1}),
    (TrialState.PRUNED, [3.5], {"optimizer.lr": 1e-2, "kind": "<b>", "steps": 9}),
    (TrialState.PRUNED, [5.0], {"optimizer.lr": 1e-2, "kind": "<b>"}),
    (TrialState.PRUNED, [math.nan], {"optimizer.lr": 1e-2, "kind": "<b>"}),
    (TrialState.PRUNED, [], {"optimizer.lr": 1e-2, "kind": "<b>"}),
    (TrialState.FAIL, [3.0], {"optimizer.lr": 1e-2, "kind": "<b>"}),
    (TrialState.RUNNING, [3.0], {"optimizer.lr": 1e-2, "kind": "<b>"}),
)


def axis(key: str) -> Axis:
    return next(axis for axis in axes_of(STUDY, points_of(STUDY)) if axis.key == key)


# --- points and axes ----------------------------------------------------------------------------------------------


def test_points_are_the_complete_and_the_pruned_trials_with_a_value() -> None:
    points = points_of(STUDY)
    assert [(point.number, point.pruned, point.value) for point in points] == [
        (0, False, 1.0),
        (1, False, 2.0),
        (2, True, 3.5),
        (3, True, 5.0),
    ]
    assert [point.worst for point in points] == [4.0, 3.0, 3.5, 5.0]


@pytest.mark.parametrize(
    ("key", "value", "share"),
    [
        ("optimizer.lr", 1e-4, 0.0),
        ("optimizer.lr", 1e-3, 0.5),
        ("optimizer.lr", 1e-2, 1.0),
        ("kind", "<b>", 0.0),
        ("kind", "a&b", 1.0),
        ("steps", 5, 0.5),
    ],
)
def test_a_value_has_its_share_of_the_axis(key: str, value: Any, share: float) -> None:
    assert axis(key).share(value) == pytest.approx(share)


def test_an_axis_without_extent_has_its_value_in_the_middle() -> None:
    assert Axis("k", "k", 3.0, 3.0).share(3.0) == 0.5
    assert Axis("k", "k", 3.0, 3.0).ticks() == [(0.5, "3")]


def test_ticks_are_the_ends_and_round_numbers_between_them() -> None:
    assert [label for _, label in axis("optimizer.lr").ticks()] == ["0.0001", "0.001", "0.01"]
    assert [label for _, label in axis("kind").ticks()] == ["&lt;b&gt;", "a&amp;b"], "escaped, as Plotly reads labels"
    assert [label for _, label in axis("steps").ticks()] == ["1", "3", "5", "7", "9"]


def test_the_objective_s_axis_spans_the_complete_trials() -> None:
    points = points_of(STUDY)
    assert (value_axis(points, METRIC).low, value_axis(points, METRIC).high) == (1.0, 2.0)
    assert value_axis([point for point in points if point.pruned], METRIC).high == 5.0


@pytest.mark.parametrize(("share", "colour"), [(0.0, SCALE[0]), (0.5, SCALE[1]), (1.0, SCALE[2]), (7.0, SCALE[2])])
def test_colours_of_the_scale(share: float, colour: str) -> None:
    assert colour_at(share) == colour


# --- slices and parallel coordinates ------------------------------------------------------------------------------


def test_a_slice_shows_pruned_trials_in_grey_within_the_axis() -> None:
    points = points_of(STUDY)
    assert worst_limit(points) == 4.0, "the worst value that a complete trial has ever reported"
    assert worst_limit(points[:2]) == 2.0, "without a pruned trial, of the values that count"
    assert worst_limit(points[2:]) == 5.0
    pruned, complete = slice_figure(axis("optimizer.lr"), points, METRIC).data
    assert (pruned.marker.color, list(pruned.y), list(pruned.marker.symbol)) == (
        PRUNED,
        [3.5, 4.0],
        ["circle", "triangle-up"],
    )
    assert (list(complete.x), list(complete.y), list(complete.marker.color)) == ([1e-3, 1e-4], [1.0, 2.0], [0, 1])
    assert "trial 3, pruned at val_loss 5.0000" in pruned.hovertext[1]


def test_a_slice_leaves_out_trials_without_its_hyperparameter() -> None:
    pruned, complete = slice_figure(axis("steps"), points_of(STUDY), METRIC).data
    assert (list(pruned.x), list(complete.x)) == ([9.0], [5.0, 1.0])


def test_choices_of_a_slice_keep_their_order_and_text() -> None:
    figure = slice_figure(axis("kind"), points_of(STUDY), METRIC)
    assert list(figure.layout.xaxis.ticktext) == ["&lt;b&gt;", "a&amp;b"]
    assert list(figure.data[1].x) == [1.0, 0.0]


def test_parallel_coordinates_show_pruned_trials_in_grey_at_a_tick_of_their_own() -> None:
    points = points_of(STUDY)
    figure = parallel_figure(value_axis(points, METRIC), axes_of(STUDY, points), points)
    pruned, worst, best = figure.data
    assert pruned.line.color == PRUNED
    assert list(pruned.y) == [PRUNED_SHARE, 1.0, 0.0, 1.0, None, PRUNED_SHARE, 1.0, 0.0, ABSENT_SHARE, None]
    assert (list(worst.y), worst.line.color) == ([1.0, 0.0, 0.0, 0.0, None], SCALE[-1])
    assert (list(best.y), best.line.color) == ([0.0, 0.5, 1.0, 0.5, None], SCALE[0])
    labels = [(note.x, note.text) for note in figure.layout.annotations]
    assert (0, "pruned") in labels
    assert (3, "–") in labels
    assert (1, "–") not in labels


# --- all plots ----------------------------------------------------------------------------------------------------


def test_all_plots_of_a_recorded_sweep_are_drawn() -> None:
    drawn = {plot.heading: plot for plot in plots(finished_study(), METRIC)}
    assert list(drawn) == ["History", "Learning curves", "Importance", "Slices", "Parallel coordinates"]
    assert [plot.missing for plot in drawn.values()] == [""] * 5
    assert [len(plot.figures) for plot in drawn.values()] == [1, 1, 1, 3, 1]
    for plot in drawn.values():
        json.dumps(plot.figures, allow_nan=False)
    for heading in ("Learning curves", "Slices", "Parallel coordinates"):
        assert any("pruned" in entry.label for entry in drawn[heading].legend)


def test_pruned_curves_are_dotted_and_end_in_a_cross() -> None:
    (curves,) = next(plot for plot in plots(finished_study(), METRIC) if plot.heading == "Learning curves").figures
    dashes = {trace["name"]: trace["line"].get("dash") for trace in curves["data"] if "line" in trace}
    assert sum(1 for name, dash in dashes.items() if name.endswith("(pruned)") and dash == "dot") == 19
    ends = {trace["marker"]["symbol"][-1] for trace in curves["data"] if trace["name"].endswith("(pruned)")}
    assert ends == {"x"}


def test_a_plot_that_cannot_be_drawn_yet_says_why() -> None:
    drawn = {plot.heading: plot for plot in plots(optuna.create_study(), METRIC)}
    assert drawn["Slices"].missing == drawn["Parallel coordinates"].missing == "no trial is complete or pruned yet"
    assert drawn["History"].missing == drawn["Importance"].missing == "no trial is complete yet"
    assert drawn["Learning curves"].missing == "no trial has reported yet"
    assert not any(plot.figures for plot in drawn.values())


def test_legends_name_what_is_there() -> None:
    only_complete = study_of(*[(TrialState.COMPLETE, [float(n)], {"optimizer.lr": 1e-3}) for n in range(1, 4)])
    for study, expected in ((only_complete, ["scale"]), (STUDY, ["scale", "point", "triangle"])):
        slices = next(plot for plot in plots(study, METRIC) if plot.heading == "Slices")
        assert [entry.mark for entry in slices.legend] == expected
