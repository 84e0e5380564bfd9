"""Chooses how many trials a worker holds if it chooses by itself (`slots: auto`).

The number doubles while twice the slots give at least `MIN_SPEEDUP` times the tokens a second of a full pack. Then it
settles on the fastest number that was measured.

Invariants: pure, without clock and torch. A number that is never measured, because there are too few trials, is never
chosen.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

MAX_SLOTS = 64
MIN_SPEEDUP = 1.05
WARM_UP_PASSES = 3  # passes after a change that are not measured
MEASURED_PASSES = 7


@dataclass(slots=True)
class AutoSlots:
    """Chooses a number of slots by measuring.

    Args:
        slots: the present choice.
        most: the largest choice.
        settled: whether the choice is final.
        rates: median label tokens a second, by the number of slots.
    """

    slots: int = 1
    most: int = MAX_SLOTS
    settled: bool = False
    rates: dict[int, float] = field(default_factory=dict)
    _passes: list[float] = field(default_factory=list)

    def observe(self, held: int, tokens: int, seconds: float) -> str | None:
        """Take one pass into account.

        Args:
            held: how many trials it trained.
            tokens: their label tokens.

        Returns:
            a sentence if the choice changes, else None.
        """
        if self.settled or held != self.slots:
            self._passes = []
            return None
        self._passes.append(tokens / seconds)
        if len(self._passes) < WARM_UP_PASSES + MEASURED_PASSES:
            return None
        rate = statistics.median(self._passes[WARM_UP_PASSES:])
        self.rates[self.slots], self._passes = rate, []
        before = self.rates.get(self.slots // 2, 0.0)
        if rate < MIN_SPEEDUP * before:
            return self._settle(max(self.rates, key=lambda n: self.rates[n]))
        if self.slots >= self.most:
            return self._settle(self.slots)
        self.slots *= 2
        return f"{rate:,.0f} tokens/s with {self.slots // 2} trials: now {self.slots}"

    def memory_full(self) -> str | None:
        """Settle, since no further trial fits into memory; returns a sentence, or None if it had settled before."""
        if self.settled:
            return None
        return self._settle(max(self.rates, key=lambda n: self.rates[n], default=1))

    def _settle(self, slots: int) -> str:
        self.slots, self.settled = slots, True
        measured = ", ".join(f"{rate:,.0f} with {count}" for count, rate in sorted(self.rates.items()))
        what = "one trial at a time: packing does not pay" if slots == 1 else f"{slots} trials at a time"
        return f"{what} (tokens/s: {measured or 'not measured'})"
