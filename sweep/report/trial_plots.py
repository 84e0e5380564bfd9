"""Plots of the trials against their hyperparameters: slices and parallel coordinates.

Invariant: complete trials are coloured and pruned ones grey; other trials are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from sweep.report.axes import Axis, Point, axes_of, is_maximised, points_of, value_axis
from sweep.report.formatting import number
from sweep.report.plot import COLOURSCALE, PRUNED, SCALE, LegendEntry, Plot, as_json, colour_at

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

# The position of the tick `pruned` above the axis of the objective, and of `–` below that of an absent hyperparameter.
PRUNED_SHARE, ABSENT_SHARE = 1.12, -0.12
# Pixels that a slice and that an axis of the parallel coordinates need.
SLICE_WIDTH, AXIS_WIDTH = 280, 120


def slices(study: optuna.Study, metric: str) -> Plot:
    """The objective against each hyperparameter, one small figure each."""
    points, maximised = _points(study), is_maximised(study)
    limit = worst_limit(points, maximised)
    numbers = [point.number for point in points]
    legend = [LegendEntry("scale", f"complete, from trial {min(numbers)} to trial {max(numbers)}", SCALE)]
    if any(point.pruned for point in points):
        legend.append(LegendEntry("point", "pruned, at its last report"))
    if any(_is_beyond(point.value, limit, maximised) for point in points):
        legend.append(LegendEntry("triangle", f"pruned {'below' if maximised else 'above'} {number(limit)}"))
    figures = [as_json(slice_figure(axis, points, metric, maximised), height=300) for axis in axes_of(study, points)]
    text = f"{metric} against each hyperparameter; each point is a trial."
    return Plot("Slices", text, tuple(figures), tuple(legend), SLICE_WIDTH)


def worst_limit(points: Sequence[Point], maximised: bool = False) -> float:
    """The worse end of the objective's axis in a slice: the upper one, or the lower one if more is better.

    It is the worst value that a complete trial has ever reported, so that a pruned trial that was as good as those
    stands within the axis. Without a complete trial it is the worst value of all.
    """
    worst = min if maximised else max
    complete = [point for point in points if not point.pruned]
    if len(complete) == len(points):
        return worst(point.value for point in complete)
    return worst((point.worst for point in complete), default=worst(point.value for point in points))


def _is_beyond(value: float, limit: float, maximised: bool) -> bool:
    return value < limit if maximised else value > limit


def slice_figure(axis: Axis, points: Sequence[Point], metric: str, maximised: bool = False) -> go.Figure:
    """The objective against one hyperparameter; pruned trials beyond the axis are triangles at its worse end."""
    import plotly.graph_objects as go

    limit = worst_limit(points, maximised)
    numbers = [point.number for point in points]
    shown = [point for point in points if axis.key in point.params]
    pruned = [point for point in shown if point.pruned]
    complete = [point for point in shown if not point.pruned]
    arrow = "triangle-down" if maximised else "triangle-up"
    symbols = [arrow if _is_beyond(point.value, limit, maximised) else "circle" for point in pruned]
    scale = {"colorscale": COLOURSCALE, "cmin": min(numbers), "cmax": max(numbers)}
    markers = (
        {"color": PRUNED, "size": 6, "symbol": symbols, "opacity": 0.7},
        {"color": [point.number for point in complete], "size": 8, **scale},
    )
    figure = go.Figure(layout={"showlegend": False, "yaxis": {"title": {"text": metric}}})
    for group, marker in zip((pruned, complete), markers, strict=True):
        figure.add_scatter(
            x=[axis.coordinate(point.params[axis.key]) for point in group],
            y=[limit if _is_beyond(point.value, limit, maximised) else point.value for point in group],
            mode="markers",
            marker=marker,
            hovertext=[_hover_text(axis, point, metric) for point in group],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    figure.update_xaxes(title_text=axis.title, type="log" if axis.log else "linear", exponentformat="e")
    if axis.choices:
        labels = [axis.label(choice) for choice in axis.choices]
        figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, range=[-0.5, len(labels) - 0.5])
    return figure


def parallel_coordinates(study: optuna.Study, metric: str) -> Plot:
    """One line for each trial over an axis for the objective and one for each hyperparameter."""
    points = _points(study)
    value, axes = value_axis(points, metric, is_maximised(study)), axes_of(study, points)
    scale = f"complete, from {metric} {number(value.low)} to {number(value.high)}"
    legend = [LegendEntry("scale", scale, SCALE)]
    if any(point.pruned for point in points):
        legend.append(LegendEntry("line", "pruned"))
    figure = as_json(parallel_figure(value, axes, points), height=420, showlegend=False)
    text = f"Each line is a trial. The first axis is {metric}, the others are the hyperparameters."
    return Plot("Parallel coordinates", text, (figure,), tuple(legend), AXIS_WIDTH * (1 + len(axes)))


def parallel_figure(value: Axis, axes: Sequence[Axis], points: Sequence[Point]) -> go.Figure:
    """Parallel coordinates: the objective, then each hyperparameter.

    All pruned trials meet at a tick of their own above the objective's axis. Their last values stand at different
    milestones, so they are comparable neither with each other nor with the value of a complete trial.
    """
    import plotly.graph_objects as go

    all_axes = [value, *axes]
    complete = sorted((point for point in points if not point.pruned), key=lambda point: -value.share(point.value))
    traces = [_lines(all_axes, [point for point in points if point.pruned], PRUNED, opacity=0.4)]
    for point in complete:
        traces.append(_lines(all_axes, [point], colour_at(value.share(point.value)), opacity=0.85))
    figure = go.Figure(traces)
    figure.update_layout(
        yaxis={"visible": False, "fixedrange": True, "range": _height_range(all_axes, points)},
        shapes=[
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": {"color": "#888"}, "layer": "below"}
            for at in range(len(all_axes))
        ],
        annotations=list(chain.from_iterable(_tick_labels(at, axis, points) for at, axis in enumerate(all_axes))),
    )
    figure.update_xaxes(
        tickvals=list(range(len(all_axes))),
        ticktext=[axis.title for axis in all_axes],
        range=[-0.45, len(all_axes) - 0.8],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _lines(axes: Sequence[Axis], points: Sequence[Point], colour: str, opacity: float) -> go.Scatter:
    """The lines of these trials as one trace, with a gap after each trial."""
    import plotly.graph_objects as go

    heights = [[*(_share(axis, point) for axis in axes), None] for point in points]
    texts = [[*(_hover_text(axis, point, axes[0].title) for axis in axes), ""] for point in points]
    return go.Scatter(
        x=[*range(len(axes)), None] * len(points),
        y=list(chain.from_iterable(heights)),
        mode="lines",
        line={"color": colour, "width": 1.4},
        opacity=opacity,
        hovertext=list(chain.from_iterable(texts)),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _share(axis: Axis, point: Point) -> float:
    """The height at which a trial crosses an axis."""
    if axis.is_objective:
        return PRUNED_SHARE if point.pruned else axis.share(point.value)
    return axis.share(point.params[axis.key]) if axis.key in point.params else ABSENT_SHARE


def _height_range(axes: Sequence[Axis], points: Sequence[Point]) -> list[float]:
    heights = [_share(axis, point) for point in points for axis in axes]
    return [min(0.0, *heights) - 0.05, max(1.0, *heights) + 0.05]


def _hover_text(axis: Axis, point: Point, metric: str) -> str:
    state = "pruned at" if point.pruned else "complete with"
    text = f"trial {point.number}, {state} {metric} {number(point.value)}"
    return f"{text}<br>{axis.title} = {axis.label(point.params[axis.key])}" if axis.key in point.params else text


def _tick_labels(at: int, axis: Axis, points: Sequence[Point]) -> list[dict[str, Any]]:
    ticks = axis.ticks()
    if axis.is_objective and any(point.pruned for point in points):
        ticks.append((PRUNED_SHARE, "pruned"))
    if not axis.is_objective and any(axis.key not in point.params for point in points):
        ticks.append((ABSENT_SHARE, "–"))
    style = {"showarrow": False, "xanchor": "right", "xshift": -4, "font": {"size": 11}}
    return [{"x": at, "y": share, "text": text, **style} for share, text in ticks]


def _points(study: optuna.Study) -> list[Point]:
    points = points_of(study)
    if not points:
        raise ValueError("no trial is complete or pruned yet")
    return points
