"""Tokens and seconds of open trials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.controller.usage import Usage

REPORTED = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 100)), max_size=30)


@given(REPORTED)
def test_totals_are_the_largest_of_each_trial_however_often_it_is_reported(
    reported: list[tuple[int, int, int]],
) -> None:
    usage = Usage()
    for _ in range(2):  # as from a channel that shows every report again
        for trial, attempt, amount in reported:
            usage.set_tokens(trial, amount)
            usage.set_seconds(trial, attempt, float(amount))
    trials = sorted({trial for trial, _, _ in reported})
    tokens = {trial: max(amount for other, _, amount in reported if other == trial) for trial in trials}
    attempts = {(trial, attempt) for trial, attempt, _ in reported}
    longest = {key: max(amount for *other, amount in reported if tuple(other) == key) for key in attempts}
    assert usage.tokens == sum(tokens.values())
    assert usage.seconds == pytest.approx(sum(longest.values()))
    assert [usage.tokens_of(trial) for trial in trials] == [tokens[trial] for trial in trials]
    for trial in trials:
        of_all_attempts = sum(seconds for (other, _), seconds in longest.items() if other == trial)
        removed = usage.remove(trial)
        assert removed[0] == tokens[trial]
        assert removed[1] == pytest.approx(of_all_attempts)
    assert usage.tokens == 0
    assert usage.seconds == pytest.approx(0.0)
