"""How many trials a worker holds where it chooses by itself (`slots: auto`).

Invariants: pure: no clock, no torch. It grows by doubling, while the tokens a second of a full pack grow, and goes
back to the best number that it has measured. What is never measured, as there are not enough trials, is not chosen.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

MOST = 64
GAIN = 1.05  # twice the slots must give so much more
WARM_UP = 3  # passes after a change that are not counted
COUNTED = 7


@dataclass(slots=True)
class Growth:
    """Chooses by measuring.

    Args:
        slots: what it has chosen so far.
        most: it grows no further.
    """

    slots: int = 1
    most: int = MOST
    settled: bool = False
    rates: dict[int, float] = field(default_factory=dict)
    _passes: list[float] = field(default_factory=list)

    def add(self, held: int, tokens: int, seconds: float) -> str | None:
        """Take a pass over so many trials into account.

        Returns:
            A sentence where the choice changes, else None.
        """
        if self.settled or held != self.slots:
            self._passes = []
            return None
        self._passes.append(tokens / seconds)
        if len(self._passes) < WARM_UP + COUNTED:
            return None
        rate = statistics.median(self._passes[WARM_UP:])
        self.rates[self.slots], self._passes = rate, []
        before = self.rates.get(self.slots // 2, 0.0)
        if rate < GAIN * before:
            return self._settle(max(self.rates, key=lambda n: self.rates[n]))
        if self.slots >= self.most:
            return self._settle(self.slots)
        self.slots *= 2
        return f"{rate:,.0f} tokens/s with {self.slots // 2} trials: now {self.slots}"

    def full(self) -> str | None:
        """No further trial fits into memory."""
        if self.settled:
            return None
        return self._settle(max(self.rates, key=lambda n: self.rates[n], default=1))

    def _settle(self, slots: int) -> str:
        self.slots, self.settled = slots, True
        measured = ", ".join(f"{rate:,.0f} with {count}" for count, rate in sorted(self.rates.items()))
        what = "one trial at a time: packing does not pay" if slots == 1 else f"{slots} trials at a time"
        return f"{what} (tokens/s: {measured or 'not measured'})"
