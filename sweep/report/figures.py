"""All plots of a report, in their order, from the study alone.

Invariant: a plot that cannot be drawn yet gives the reason instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState
from sweep.report.formatting import number, short_keys
from sweep.report.plot import SCALE, LegendEntry, Plot, as_json
from sweep.report.trial_plots import parallel_coordinates, slices

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

# With more curves there is no legend of the trials; the curve under the mouse is named all the same.
LEGEND_CURVES = 30
Draw = Callable[["optuna.Study", str], Plot]


def plots(study: optuna.Study, metric: str) -> list[Plot]:
    """All plots of a study, in the report's order.

    Args:
        metric: the name of the study's objective.
    """
    return [_drawn(heading, draw, study, metric) for heading, draw in DRAWN.items()]


def _drawn(heading: str, draw: Draw, study: optuna.Study, metric: str) -> Plot:
    try:
        return draw(study, metric)
    except (ValueError, RuntimeError, ImportError) as error:
        return Plot(heading, "", missing=str(error))


def history(study: optuna.Study, metric: str) -> Plot:
    """The objective of each complete trial by number, and the best so far."""
    from optuna.visualization import plot_optimization_history

    figure = plot_optimization_history(study, target_name=metric)
    if not figure.data:
        raise ValueError("no trial is complete yet")
    return Plot("History", f"{metric} of each complete trial, and the best so far.", (as_json(figure),))


def learning_curves(study: optuna.Study, metric: str) -> Plot:
    """The objective by milestone, one curve for each trial."""
    figure = curves_figure(study, metric)
    if not figure.data:
        raise ValueError("no trial has reported yet")
    legend = (
        LegendEntry("line", "complete or running", (SCALE[0],)),
        LegendEntry("dotted", "pruned, with a cross at the last report"),
    )
    text = f"{metric} at each milestone, that is, after equal numbers of label tokens."
    return Plot("Learning curves", text, (as_json(figure, showlegend=len(figure.data) <= LEGEND_CURVES),), legend)


def curves_figure(study: optuna.Study, metric: str) -> go.Figure:
    """Optuna's learning curves; those of pruned trials are dotted and end in a cross."""
    from optuna.trial import TrialState
    from optuna.visualization import plot_intermediate_values

    figure = plot_intermediate_values(study)
    pruned = {f"Trial{trial.number}" for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))}
    for trace in figure.data:
        if trace.name in pruned:
            points = len(trace.x or ())
            trace.update(line={"dash": "dot"}, opacity=0.55, marker={"symbol": ["circle"] * (points - 1) + ["x"]})
            trace.update(marker_size=[5] * (points - 1) + [10], marker_line_width=0, name=f"{trace.name} (pruned)")
    figure.update_layout(xaxis_title="milestone", yaxis_title=metric)
    return figure


def metric_histories(state: SweepState) -> list[Plot]:
    """What trials measured beside the objective, one plot for each metric, with the base's score as a line."""
    names = [name for name in state.metrics if name != state.metric]
    return [_metric_history(state, name) for name in names]


def _metric_history(state: SweepState, name: str) -> Plot:
    import plotly.graph_objects as go

    heading, base = f"History of {name}", state.base_scores.get(name)
    figure = go.Figure(layout={"xaxis": {"title": "milestone"}, "yaxis": {"title": escape(name, quote=False)}})
    for row in state.rows:
        points = [(report.milestone, report.scores[name]) for report in row.reports if name in report.scores]
        if points:
            dotted = {"dash": "dot"} if row.state is TrialStatus.PRUNED else {}
            milestones, values = zip(*points, strict=True)
            figure.add_scatter(
                x=milestones, y=values, mode="lines+markers", line={"width": 1.4, **dotted}, name=f"Trial{row.number}"
            )
    if not figure.data:
        return Plot(heading, "", missing=f"no trial has measured {name} yet")
    if base is not None and math.isfinite(base):
        figure.add_hline(y=base, line={"dash": "dash", "color": "#888", "width": 1})
    text = f"{name} at each milestone at which it was measured; dotted: pruned trials."
    text += f" The dashed line is the base without an adapter, {number(base)}." if base is not None else ""
    return Plot(heading, text, (as_json(figure, showlegend=len(figure.data) <= LEGEND_CURVES),))


def importance(study: optuna.Study, metric: str) -> Plot:
    """The importance of each hyperparameter by PED-ANOVA (Watanabe, Bansal and Hutter, 2023)."""
    import plotly.graph_objects as go
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise ValueError("no trial is complete yet")
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    names = short_keys(list(shares))
    ascending = sorted(shares, key=lambda key: shares[key])
    bars = go.Bar(
        x=[shares[key] for key in ascending],
        y=[escape(names[key], quote=False) for key in ascending],
        text=[f"{shares[key]:.0%}" for key in ascending],
        orientation="h",
        marker={"color": SCALE[0]},
    )
    figure = go.Figure(bars, layout={"xaxis": {"title": "importance"}, "yaxis": {"automargin": True}})
    text = f"How much each hyperparameter decides whether {metric} is among the best (PED-ANOVA; all add up to 1)."
    return Plot("Importance", text, (as_json(figure, height=110 + 36 * len(shares)),))


DRAWN: Mapping[str, Draw] = {
    "History": history,
    "Learning curves": learning_curves,
    "Importance": importance,
    "Slices": slices,
    "Parallel coordinates": parallel_coordinates,
}
