"""A plot of the report: Plotly figures in plain JSON, with an explanation and a legend.

Invariants: a figure has no ground and no text colour of its own, and its colours can be read on a light and on a dark
ground.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# From the best value or the first trial to the worst or the last.
SCALE = ("#2f7ed8", "#8a63d2", "#e07b39")
COLOURSCALE = [(index / (len(SCALE) - 1), colour) for index, colour in enumerate(SCALE)]
PRUNED = "#98a2ad"


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One entry of a legend.

    Args:
        mark: `point`, `triangle`, `line`, `dotted` (a dotted line that ends in a cross) or `scale`.
        colours: one, or those of a scale.
    """

    mark: str
    label: str
    colours: tuple[str, ...] = (PRUNED,)


@dataclass(frozen=True, slots=True)
class Plot:
    """A heading of the report with its figures.

    Args:
        figures: in Plotly's JSON; several stand beside each other if there is room.
        width: the pixels that each figure needs at least; it scrolls on a narrower screen.
        missing: the reason why there is no figure; empty otherwise.
    """

    heading: str
    explanation: str
    figures: tuple[Mapping[str, Any], ...] = ()
    legend: tuple[LegendEntry, ...] = ()
    width: int = 0
    missing: str = ""


def colour_at(share: float) -> str:
    """The colour of a position on the scale, 0 at its first and 1 at its last colour, as `#rrggbb`."""
    index, rest = divmod(min(max(share, 0.0), 1.0) * (len(SCALE) - 1), 1.0)
    lower, upper = SCALE[int(index)], SCALE[min(int(index) + 1, len(SCALE) - 1)]
    channels = [(int(lower[at : at + 2], 16), int(upper[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(low + (high - low) * rest):02x}" for low, high in channels)


def as_json(figure: go.Figure, height: int = 380, **layout: Any) -> dict[str, Any]:
    """A figure as Plotly's plain JSON, without a title, a ground or a template of its own."""
    figure.update_layout(
        title=None,
        template=None,
        height=height,
        margin={"t": 20, "r": 15, "b": 50, "l": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        **layout,
    )
    raw: dict[str, Any] = json.loads(figure.to_json())
    raw["layout"].pop("template", None)
    return raw
