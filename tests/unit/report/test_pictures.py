"""The pictures of the documentation are what the program draws today."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.helpers.pictures import DIRECTORY, pictures

MADE = pictures()
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", MADE)
def test_a_picture_is_up_to_date(name: str) -> None:
    path = DIRECTORY / name
    kept = path.read_text() if path.exists() else ""
    assert kept == MADE[name], (
        f"docs/pictures/{name} is out of date: make it anew with `python -m tests.helpers.pictures`"
    )


def test_there_are_no_other_pictures() -> None:
    assert sorted(path.name for path in DIRECTORY.iterdir()) == sorted(MADE)


@pytest.mark.parametrize("name", MADE)
def test_a_picture_is_small_and_loads_nothing(name: str) -> None:
    assert len(MADE[name].encode()) < 60_000
    urls = re.findall(r"https?://[^\"'\s)]+", MADE[name])
    assert set(urls) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}, "a namespace and Rich's signature"
    assert "@font-face" not in MADE[name]
    assert "url(http" not in MADE[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("live-view.svg", ["sweep run experiment=demo", "2 running", "14/24 trials", "lora_rank=8", "best", "▁"]),
        ("learning-curves.svg", ["Learning curves", "milestone", "pruned, with a cross at the last report"]),
        ("slices.svg", ["lora_rank", "lr", "accum", "pruned, at its last report"]),
        ("parallel-coordinates.svg", ["val_loss", "lora_rank", "pruned", "0.001"]),
    ],
)
def test_a_picture_is_an_svg_with_these_words(name: str, words: list[str]) -> None:
    text = " ".join(ElementTree.fromstring(MADE[name]).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for word in words:
        assert word in text


def test_the_learning_curves_show_every_trial() -> None:
    drawn = ElementTree.fromstring(MADE["learning-curves.svg"])
    curves = [path for path in drawn.iter(f"{SVG}path") if "L" in (path.get("d") or "")]
    assert len(curves) == 24
    assert sum(1 for curve in curves if curve.get("stroke-dasharray")) == 19
