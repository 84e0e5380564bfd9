"""How `slots: auto` chooses, on made-up speeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from trainer.slots import COUNTED, WARM_UP, Growth


def train(growth: Growth, speed: Callable[[int], float], passes: int = 200) -> list[str]:
    """Full packs, each pass a second; the sentences that were said."""
    said = (growth.add(growth.slots, round(speed(growth.slots)), 1.0) for _ in range(passes))
    return [sentence for sentence in said if sentence]


@pytest.mark.parametrize(
    ("speed", "slots"),
    [
        (lambda n: 1000 * n, 64),
        (lambda n: 1000 * min(n, 8), 8),
        (lambda n: 1000, 1),
        (lambda n: 1000 if n == 1 else 900, 1),
        (lambda n: {1: 1000, 2: 1800, 4: 1500}[n], 2),
        (lambda n: {1: 1000, 2: 1040}[n], 2),
    ],
    ids=["grows to the most", "until it does not pay", "declines", "never slower", "goes back", "the better of two"],
)
def test_it_ends_with_the_fastest_that_it_measured(speed: Callable[[int], float], slots: int) -> None:
    growth = Growth()
    said = train(growth, speed)
    assert (growth.slots, growth.settled) == (slots, True)
    assert growth.rates[slots] >= 0.98 * growth.rates[1]
    assert train(growth, lambda n: 1e6) == []
    assert ("packing does not pay" in said[-1]) == (slots == 1)


def test_passes_that_are_not_full_or_just_after_a_change_say_nothing() -> None:
    growth = Growth()
    speeds = itertools.chain([1.0] * WARM_UP, itertools.repeat(1000.0))
    train(growth, lambda n: next(speeds), WARM_UP + COUNTED)
    assert growth.rates == {1: 1000.0}
    assert growth.slots == 2
    assert all(growth.add(1, 9999, 1.0) is None for _ in range(100)), "the second slot is still empty"
    assert growth.rates == {1: 1000.0}


def test_memory_ends_the_growth_at_what_was_measured() -> None:
    growth = Growth()
    train(growth, lambda n: 1000.0 * n, 2 * (WARM_UP + COUNTED))
    assert growth.slots == 4
    assert growth.full() is not None
    assert (growth.slots, growth.full()) == (2, None)
    assert Growth().full() == "one trial at a time: packing does not pay (tokens/s: not measured)"
