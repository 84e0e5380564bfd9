"""The texts of errors: bounded, and with the keys that a person may have meant."""

from __future__ import annotations

import pytest

from sweep.errors import LONGEST, NAMED_KEYS, ConfigError, GiveUp, RetryLater, SweepError, unknown_key


@pytest.mark.parametrize("kind", [SweepError, ConfigError, GiveUp, RetryLater])
def test_an_error_of_thousands_of_characters_keeps_its_beginning_and_its_end(kind: type[SweepError]) -> None:
    text = str(kind(f"dataset.data_files={'a.jsonl,' * 5000} has no rows; name data"))
    assert len(text) < LONGEST + 50
    assert text.startswith("dataset.data_files=a.jsonl,")
    assert text.endswith("has no rows; name data")
    assert str(kind("short")) == "short"


def test_of_few_keys_all_are_listed() -> None:
    assert str(unknown_key("search", "trails", ["trials", "tokens"])) == (
        "search: there is no key trails (did you mean trials?); allowed: tokens, trials"
    )


def test_of_many_keys_those_are_listed_that_are_most_like_the_key() -> None:
    keys = [f"model.k{index}" for index in range(500)] + ["optimizer.lr", "optimizer.weight_decay"]
    text = str(unknown_key("space", "optimizer.lrr", keys))
    assert "(did you mean optimizer.lr?)" in text
    listed = text.partition("allowed: ")[2]
    assert "optimizer.weight_decay" in listed
    assert listed.endswith(f" and {502 - NAMED_KEYS} more")
    assert listed.count(",") == NAMED_KEYS - 1
