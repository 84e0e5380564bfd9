"""A small SVG of panels of step lines, both axes logarithmic. No library: the file is to be small and readable in a
diff."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 430, 250, 46, 36, 22
COLOURS = [
    "#d62728",
    "#ff9896",
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
    "#393b79",
    "#637939",
    "#8c6d31",
]
X = (0.5, 400.0)
Y = (1e-3, 5.0)


@dataclass(frozen=True)
class Line:
    """Points (x, regret), ascending by x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    title: str
    axis: str
    lines: Sequence[Line]


def svg(panels: Sequence[Panel], bold: str = "") -> str:
    """Panels two in a row, and one legend below.

    Args:
        bold: the name of the line that is to stand out, above all others.
    """
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    styles = {name: _style(i) for i, name in enumerate(names)} | {bold: 'stroke="#000" stroke-width="2.6"'}
    down = HEIGHT * math.ceil(len(panels) / 2)
    parts = [
        f'<g transform="translate({WIDTH * (i % 2)} {HEIGHT * (i // 2)})">{_panel(panel, styles, bold)}</g>'
        for i, panel in enumerate(panels)
    ]
    for i, name in enumerate(names):
        x, y = 20 + 280 * (i % 3), down + 14 + 16 * (i // 3)
        parts.append(f'<path d="M{x} {y - 4}h24" {styles[name]}/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{name}</text>')
    height = down + 16 * math.ceil(len(names) / 3) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/><g fill="none" stroke-width="1.4">'
        + "\n".join(parts).replace("<text", '<text fill="#222" stroke="none"')
        + "</g></svg>\n"
    )


def _style(index: int) -> str:
    dash = "" if index < len(COLOURS) else ' stroke-dasharray="4 3"'
    return f'stroke="{COLOURS[index % len(COLOURS)]}"{dash}'


def _panel(panel: Panel, styles: Mapping[str, str], bold: str) -> str:
    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{panel.title}</text>']
    parts.append(f'<text x="{WIDTH - 150}" y="{HEIGHT - 6}">{panel.axis}</text><text x="2" y="{TOP + 8}">regret</text>')
    for x in (1.0, 10.0, 100.0):
        parts.append(f'<path d="M{_x(x)} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{_x(x) - 6}" y="{HEIGHT - BOTTOM + 14}">{x:g}</text>')
    for y in (0.001, 0.01, 0.1, 1.0):
        parts.append(f'<path d="M{LEFT} {_y(y)}H{WIDTH - 10}" stroke="{"#999" if y == 0.01 else "#ddd"}"/>')
        parts.append(f'<text x="8" y="{_y(y) + 4}">{100 * y:g} %</text>')
    for line in sorted(panel.lines, key=lambda line: line.name == bold):
        steps = ""
        for x, y in line.points:
            steps += f"H{_x(x)}V{_y(y)}" if steps else f"M{_x(x)} {_y(y)}"
        if steps:
            parts.append(f'<path d="{steps}" {styles[line.name]}/>')
    return "".join(parts)


def _x(value: float) -> int:
    share = math.log(value / X[0]) / math.log(X[1] / X[0])
    return round(LEFT + share * (WIDTH - 10 - LEFT))


def _y(value: float) -> int:
    share = math.log(min(max(value, Y[0]), Y[1]) / Y[0]) / math.log(Y[1] / Y[0])
    return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP))
