"""Long values are shortened where they are shown, and short ones stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.report.formatting import param, params_text
from trainer.shortening import CONFIG_ITEM_LIMIT, short_list, short_text, short_values

FILES = [f"data/part-{at:05d}.jsonl" for at in range(4000)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a", "b"], "a,b"),
        ([], ""),
        (["a"] * 9, "a,a,a,a,a,a,a,a,… (1 more)"),
        (
            FILES,
            "data/part-00000.jsonl,data/part-00001.jsonl,data/part-00002.jsonl,data/part-00003.jsonl,"
            "data/part-00004.jsonl,… (3995 more)",
        ),
        ("x" * 120, "x" * 120),
        ("x" * 1000, f"{'x' * 80}… (880 more) …{'x' * 40}"),
        (0.00012345, "0.000123"),
        (True, "True"),
    ],
)
def test_a_hyperparameter_fits_a_line(value: Any, text: str) -> None:
    assert param(value) == text


def test_hyperparameters_fit_a_line() -> None:
    assert len(params_text({"dataset.data_files": FILES, "dataset.source": "json"})) < 200


@given(st.text(max_size=2000), st.integers(20, 400))
def test_a_text_is_never_longer_than_its_limit_and_the_words_for_the_rest(text: str, limit: int) -> None:
    shown = short_text(text, limit)
    assert len(shown) <= limit + 20
    assert shown == text or len(text) > limit


@given(st.lists(st.text(max_size=300)))
def test_a_list_is_one_line_of_a_few_hundred_characters(texts: list[str]) -> None:
    assert len(short_list(texts)) < 320


def test_a_configuration_keeps_its_short_values() -> None:
    config = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None, "f": [{"g": FILES}], "h": "y" * 10_000}
    shown = short_values(config)
    assert {key: shown[key] for key in "abe"} == {key: config[key] for key in "abe"}
    files = shown["f"][0]["g"]
    assert files == [*FILES[:CONFIG_ITEM_LIMIT], "… (3950 more)"]
    assert len(shown["h"]) < 2100
