"""The clock by which durations are measured.

Invariants: standard library only. A step of the wall clock does not change it. It counts the time for which the machine
is suspended, so that what was known before a suspension is old afterwards. The wall clock (`time.time`) serves only for
what must be comparable after a restart, and for what a person reads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# Only Linux has a clock that continues while the machine is suspended.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds since some fixed moment, time of suspension included."""
    return time.clock_gettime(_CLOCK)


@dataclass(slots=True)
class WallAges:
    """How long ago moments of the wall clock are, for facts that must survive a restart.

    The wall clock is read when a moment is first asked for. From then on its steps change nothing.
    """

    _zeros: dict[tuple[str, float], float] = field(default_factory=dict)

    def age(self, of: str, moment: float) -> float:
        """Seconds since a moment, at least 0.

        Args:
            of: names the fact, in case that another one has the same moment.
            moment: seconds since the epoch.
        """
        now = boot_seconds()
        return now - self._zeros.setdefault((of, moment), now - max(0.0, time.time() - moment))
