"""Makes the pictures of the documentation from a recorded sweep.

    python -m tests.helpers.pictures

`tests/unit/report/test_pictures.py` fails if a picture differs from what this makes.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from sweep.report.figures import plots
from sweep.report.terminal import live_view
from tests.helpers.recorded import METRIC, finished_study, midway_state
from tests.helpers.svg import svg_of

DIRECTORY = Path(__file__).resolve().parents[2] / "docs" / "pictures"
COMMAND = "sweep run experiment=demo"
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# The plots that become pictures: file, height in pixels.
PLOTS = {
    "Learning curves": ("learning-curves.svg", 380),
    "Slices": ("slices.svg", 330),
    "Parallel coordinates": ("parallel-coordinates.svg", 370),
}
NAMES = ("live-view.svg", *(file for file, _ in PLOTS.values()))


def pictures() -> dict[str, str]:
    """The text of each picture, by the name of its file."""
    drawn = {plot.heading: plot for plot in plots(finished_study(), METRIC)}
    files = {file: svg_of(drawn[heading], height) for heading, (file, height) in PLOTS.items()}
    return {"live-view.svg": live_view_picture(), **files}


def live_view_picture() -> str:
    """The live view of `sweep run` as Rich draws it, with fonts of the reader's machine."""
    console = Console(
        record=True, width=112, height=24, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(live_view(midway_state(), [], height=24))
    svg = console.export_svg(title=COMMAND, unique_id="live-view")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # they name a server that <img> may not load
    return re.sub(r"Fira Code, ?monospace|Fira Code", MONOSPACE, svg)


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (DIRECTORY / name).write_text(text)
        print(DIRECTORY / name)


if __name__ == "__main__":
    main()
