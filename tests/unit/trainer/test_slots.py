"""How `slots: auto` chooses, on made-up speeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from trainer.slots import MEASURED_PASSES, WARM_UP_PASSES, AutoSlots


def train(auto: AutoSlots, speed: Callable[[int], float], passes: int = 200) -> list[str]:
    """Full packs, each pass a second; the sentences that were said."""
    said = (auto.observe(auto.slots, round(speed(auto.slots)), 1.0) for _ in range(passes))
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
    auto = AutoSlots()
    said = train(auto, speed)
    assert (auto.slots, auto.settled) == (slots, True)
    assert auto.rates[slots] >= 0.98 * auto.rates[1]
    assert train(auto, lambda n: 1e6) == []
    assert ("packing does not pay" in said[-1]) == (slots == 1)


def test_passes_that_are_not_full_or_just_after_a_change_say_nothing() -> None:
    auto = AutoSlots()
    speeds = itertools.chain([1.0] * WARM_UP_PASSES, itertools.repeat(1000.0))
    train(auto, lambda n: next(speeds), WARM_UP_PASSES + MEASURED_PASSES)
    assert auto.rates == {1: 1000.0}
    assert auto.slots == 2
    assert all(auto.observe(1, 9999, 1.0) is None for _ in range(100)), "the second slot is still empty"
    assert auto.rates == {1: 1000.0}


def test_full_memory_settles_on_what_was_measured() -> None:
    auto = AutoSlots()
    train(auto, lambda n: 1000.0 * n, 2 * (WARM_UP_PASSES + MEASURED_PASSES))
    assert auto.slots == 4
    assert auto.memory_full() is not None
    assert (auto.slots, auto.memory_full()) == (2, None)
    assert AutoSlots().memory_full() == "one trial at a time: packing does not pay (tokens/s: not measured)"
