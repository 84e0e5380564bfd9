"""Draws a plot of the report as a small SVG, without a browser.

It draws what the report's scatter figures consist of: lines, points, crosses and triangles over linear, logarithmic and
categorical axes, with annotations. The picture has a ground of its own, light or dark as the reader prefers, so that it
can be read wherever it is embedded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sweep.report.plot import LegendEntry, Plot, colour_at

WIDTH, MARGIN, TITLE_HEIGHT = 860, 14, 80
# Plotly's colours of traces without a colour of their own.
CYCLE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
STYLE = """
svg { --ground: #ffffff; --text: #1c2733; --quiet: #5c6b7a; --line: #dde4ea }
@media (prefers-color-scheme: dark) { svg { --ground: #12171d; --text: #dbe3ea; --quiet: #97a5b2; --line: #2c3742 } }
text { font: 11px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--text) }
.title { font-size: 15px; font-weight: 600 } .quiet { fill: var(--quiet) } .end { text-anchor: end }
.middle { text-anchor: middle } .grid { stroke: var(--line) } .axis { stroke: #888888 } path { fill: none }
.under { paint-order: stroke; stroke: var(--ground); stroke-width: 4px }
"""


@dataclass(frozen=True)
class Scale:
    """Where the values of an axis stand between two pixels.

    Args:
        low, high: the ends of the axis; logarithms to base 10 if `log`.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return round(self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the axis, with their labels."""
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [(10.0**power, f"{10.0**power:g}") for power in powers]
        rough = (self.high - self.low) / 6
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        values = [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(value, f"{value:g}") for value in values]


def svg_of(plot: Plot, height: int) -> str:
    """The plot as an SVG of this height in pixels; several figures stand beside each other."""
    width = (WIDTH - 2 * MARGIN) / len(plot.figures)
    parts = [_text(MARGIN, 26, plot.heading, "title"), *_legend(plot.legend)]
    for index, figure in enumerate(plot.figures):
        box = (MARGIN + index * width, TITLE_HEIGHT, MARGIN + (index + 1) * width - 8, height - 8)
        parts += _figure(figure, box)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{plot.heading}">\n<style>{STYLE}</style>\n'
        f'<rect width="100%" height="100%" rx="8" style="fill: var(--ground)"/>\n{body}\n</svg>\n'
    )


def _legend(entries: Sequence[LegendEntry]) -> list[str]:
    parts, x = [], float(MARGIN)
    for entry in entries:
        colour, y = entry.colours[0], 46
        if entry.mark == "scale":
            width = 36 / len(entry.colours)
            for index, part in enumerate(entry.colours):
                parts.append(f'<path d="M{x + index * width:g} {y}h{width:g}" stroke="{part}" stroke-width="8"/>')
        elif entry.mark in ("point", "triangle"):
            parts.append(_mark("triangle-up" if entry.mark == "triangle" else "circle", x + 26, y, 4, colour))
        else:
            dotted = entry.mark == "dotted"
            dash = ' stroke-dasharray="2 3"' if dotted else ""
            parts.append(f'<path d="M{x:g} {y}h36" stroke="{colour}" stroke-width="2"{dash}/>')
            parts += [_mark("x", x + 36, y, 4, colour)] if dotted else []
        parts.append(_text(x + 44, y + 4, entry.label, "quiet"))
        x += 64 + 5.8 * len(entry.label)
    return parts


def _figure(figure: Mapping[str, Any], box: tuple[float, float, float, float]) -> list[str]:
    left, top, right, bottom = box
    layout, traces = figure["layout"], figure["data"]
    has_values = layout.get("yaxis", {}).get("visible", True)
    left, bottom = left + (46 if has_values else 4), bottom - 34
    x = _scale(layout.get("xaxis", {}), _values(traces, "x"), left, right)
    y = _scale(layout.get("yaxis", {}), _values(traces, "y"), bottom, top)
    parts = []
    for value, label in _axis_ticks(layout.get("xaxis", {}), x):
        if layout["xaxis"].get("showgrid", True):
            parts.append(f'<path class="grid" d="M{x(value)} {top:g}V{bottom:g}"/>')
        parts.append(_text(x(value), bottom + 15, label, "middle"))
    for value, label in y.ticks() if has_values else []:
        parts.append(f'<path class="grid" d="M{left:g} {y(value)}H{right:g}"/>')
        parts.append(_text(left - 6, y(value) + 4, label, "end"))
    if has_values:
        parts.append(_text((left + right) / 2, bottom + 31, _title(layout["xaxis"]), "middle quiet"))
        parts.append(_text(left - 6, top - 6, _title(layout["yaxis"]), "quiet end"))
    for shape in layout.get("shapes", []):
        parts.append(f'<path class="axis" d="M{x(shape["x0"])} {y(shape["y0"])}V{y(shape["y1"])}"/>')
    for index, trace in enumerate(traces):
        parts += _trace(trace, x, y, CYCLE[index % len(CYCLE)])
    for note in layout.get("annotations", []):
        parts.append(_text(x(note["x"]) - 4, y(note["y"]) + 4, note["text"], "end under"))
    return parts


def _trace(trace: Mapping[str, Any], x: Scale, y: Scale, colour: str) -> list[str]:
    marker, line = trace.get("marker", {}), trace.get("line", {})
    points = list(zip(trace["x"], trace["y"], strict=True))
    opacity = trace.get("opacity", 1) * marker.get("opacity", 1)
    parts = []
    if "lines" in trace["mode"]:
        runs = groupby(points, key=lambda point: point[1] is None)
        paths = ["M" + "L".join(f"{x(a)} {y(b)}" for a, b in run) for is_gap, run in runs if not is_gap]
        dash = ' stroke-dasharray="2 3"' if line.get("dash") == "dot" else ""
        stroke = f'stroke="{line.get("color", colour)}" stroke-width="{line.get("width", 1.6):g}"'
        parts.append(f'<path d="{"".join(paths)}" {stroke}{dash}/>')
    if "markers" in trace["mode"]:
        sizes = _repeated(marker.get("size", 6), len(points))
        symbols = _repeated(marker.get("symbol", "circle"), len(points))
        colours = _repeated(marker.get("color", colour), len(points))
        for (a, b), size, symbol, own in zip(points, sizes, symbols, colours, strict=True):
            shown = (
                own if isinstance(own, str) else colour_at((own - marker["cmin"]) / (marker["cmax"] - marker["cmin"]))
            )
            parts.append(_mark(symbol, x(a), y(b), size / 2, shown))
    return [f'<g opacity="{opacity:g}">', *parts, "</g>"] if opacity < 1 else parts


def _mark(symbol: str, x: float, y: float, radius: float, colour: str) -> str:
    if symbol == "x":
        arm = 2 * radius
        path = f"M{x - radius:g} {y - radius:g}l{arm:g} {arm:g}m0 -{arm:g}l-{arm:g} {arm:g}"
        return f'<path d="{path}" stroke="{colour}" stroke-width="2"/>'
    if symbol == "triangle-up":
        path = f"M{x:g} {y - radius:g}l{radius:g} {1.8 * radius:g}h-{2 * radius:g}z"
        return f'<path d="{path}" style="fill: {colour}"/>'
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{colour}"/>'


def _scale(axis: Mapping[str, Any], values: Iterable[float], start: float, end: float) -> Scale:
    log = axis.get("type") == "log"
    if "range" in axis:
        low, high = axis["range"]
        return Scale(low, high, start, end, log)
    numbers = [math.log10(value) if log else value for value in values]
    margin = 0.06 * (max(numbers) - min(numbers))
    return Scale(min(numbers) - margin, max(numbers) + margin, start, end, log)


def _axis_ticks(axis: Mapping[str, Any], scale: Scale) -> list[tuple[float, str]]:
    return list(zip(axis["tickvals"], axis["ticktext"], strict=True)) if "tickvals" in axis else scale.ticks()


def _values(traces: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [value for trace in traces for value in trace[name] if value is not None]


def _repeated(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * count


def _title(axis: Mapping[str, Any]) -> str:
    return str(axis.get("title", {}).get("text", ""))


def _text(x: float, y: float, text: str, kind: str) -> str:
    """A text at its baseline. The figures' texts are escaped already, since Plotly needs them so."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>'
