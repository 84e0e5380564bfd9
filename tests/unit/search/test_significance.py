"""Which finalists are tied."""

from __future__ import annotations

import pytest

from sweep.model.objectives import Objective
from sweep.search.significance import finalists_text, rank_finalists


def values(*numbers: float) -> dict[int, float]:
    return dict(enumerate(numbers))


def test_the_least_mean_is_first_and_what_the_seeds_cannot_tell_apart_is_tied() -> None:
    found = rank_finalists(
        {1: values(1.0, 1.1, 0.9), 4: values(1.01, 1.08, 0.92), 7: values(1.5, 1.62, 1.39)}, Objective("loss")
    )
    assert [one.number for one in found] == [1, 4, 7]
    assert [one.tied for one in found] == [True, True, False]
    assert found[0].p is None
    assert found[1].p is not None
    assert found[1].p > 0.05 > (found[2].p or 1)


def test_p_values_hold_together() -> None:
    alone = rank_finalists({1: values(1.0, 1.1, 0.9), 2: values(1.2, 1.33, 1.09)}, Objective("loss"))
    beside = rank_finalists(
        {1: values(1.0, 1.1, 0.9), 2: values(1.2, 1.33, 1.09), 3: values(1.2, 1.33, 1.09)}, Objective("loss")
    )
    assert alone[1].p is not None
    assert beside[1].p == pytest.approx(2 * alone[1].p)


def test_one_seed_allows_no_test() -> None:
    found = rank_finalists({1: values(1.0), 2: values(2.0)}, Objective("loss"))
    assert [one.tied for one in found] == [True, True]
    assert "one seed allows no test" in finalists_text({1: values(1.0), 2: values(2.0)}, Objective("loss"))


def test_no_spread_needs_no_division() -> None:
    same, worse = rank_finalists({1: values(1.0, 1.0), 2: values(1.0, 1.0), 3: values(2.0, 2.0)}, Objective("loss"))[1:]
    assert (same.tied, worse.tied) == (True, False)


def test_without_finals_nothing_is_said() -> None:
    assert finalists_text({}, Objective("loss")) == ""
