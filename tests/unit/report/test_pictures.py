"""The pictures of the documentation are what the program draws today."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.helpers.pictures import DIRECTORY, NAMES, pictures

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pictures()


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_up_to_date(name: str, made: dict[str, str]) -> None:
    path = DIRECTORY / name
    kept = path.read_text() if path.exists() else ""
    assert kept == made[name], (
        f"docs/pictures/{name} is out of date: make it anew with `python -m tests.helpers.pictures`"
    )


def test_there_are_no_other_pictures(made: dict[str, str]) -> None:
    assert sorted(path.name for path in DIRECTORY.iterdir()) == sorted(made) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_loads_nothing(name: str, made: dict[str, str]) -> None:
    assert len(made[name].encode()) < 60_000
    urls = re.findall(r"https?://[^\"'\s)]+", made[name])
    assert set(urls) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}, "a namespace and Rich's signature"
    assert "@font-face" not in made[name]
    assert "url(http" not in made[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("live-view.svg", ["sweep run experiment=demo", "2 running", "14/24 trials", "lora_rank=8", "best", "▁"]),
        ("learning-curves.svg", ["Learning curves", "milestone", "pruned, with a cross at the last report"]),
        ("slices.svg", ["lora_rank", "lr", "accum", "pruned, at its last report"]),
        ("parallel-coordinates.svg", ["val_loss", "lora_rank", "pruned", "0.001"]),
    ],
)
def test_a_picture_is_an_svg_with_these_words(name: str, words: list[str], made: dict[str, str]) -> None:
    text = " ".join(ElementTree.fromstring(made[name]).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for word in words:
        assert word in text


def test_the_learning_curves_show_every_trial(made: dict[str, str]) -> None:
    drawn = ElementTree.fromstring(made["learning-curves.svg"])
    curves = [path for path in drawn.iter(f"{SVG}path") if "L" in (path.get("d") or "")]
    assert len(curves) == 24
    assert sum(1 for curve in curves if curve.get("stroke-dasharray")) == 19
