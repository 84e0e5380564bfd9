"""What open trials have spent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.controller.usage import Usage

HEARD = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 100)), max_size=30)


@given(HEARD)
def test_totals_are_those_of_what_each_trial_came_to_however_often_it_is_heard(
    heard: list[tuple[int, int, int]],
) -> None:
    spent = Usage()
    for _ in range(2):  # as from a channel that shows every report again
        for trial, attempt, amount in heard:
            spent.add_tokens(trial, amount)
            spent.add_seconds(trial, attempt, float(amount))
    trials = sorted({trial for trial, _, _ in heard})
    tokens = {trial: max(amount for one, _, amount in heard if one == trial) for trial in trials}
    attempts = {(trial, attempt) for trial, attempt, _ in heard}
    longest = {key: max(amount for *one, amount in heard if tuple(one) == key) for key in attempts}
    assert spent.tokens == sum(tokens.values())
    assert spent.seconds == pytest.approx(sum(longest.values()))
    assert [spent.tokens_of(trial) for trial in trials] == [tokens[trial] for trial in trials]
    for trial in trials:
        of_all_attempts = sum(seconds for (one, _), seconds in longest.items() if one == trial)
        taken = spent.take(trial)
        assert taken[0] == tokens[trial]
        assert taken[1] == pytest.approx(of_all_attempts)
    assert spent.tokens == 0
    assert spent.seconds == pytest.approx(0.0)
