"""What a forecast is made from: the reports of a sweep's trials, as logarithms, and which of them are looked at.

Invariants: pure. At most `ROWS` reports are looked at: the last of every trial while there is room, and earlier ones of
those that went far, so that a forecast costs the same at 10,000 trials as at 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweep.search.strategy.encoding import Floats

ROWS = 120
TRIALS = 80
EARLIER = 3  # reports of a trial looked at besides its last
# How much of a trial is its own (o of the surrogate): a share of what it lies behind its milestone's best beyond a
# tenth, where the loss of a LoRA trial is no longer that of a contender.
OWN, BEHIND = 0.1, 0.1
# Log loss behind the best at a milestone beyond which differences shrink to their logarithm.
SQUASH = 0.15
# Log loss by which a better end counts as better: nats that no seed would confirm are not worth a trial.
MARGIN = 0.003


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a trial.

    Args:
        losses: at milestones 1, 2, …; not finite ones count as the worst finite one.
        signs: features that say what is still to come (see `signs`), empty where they are not used.
        running: it is being trained, so that its end will be known without a decision.
        complete: its last loss is its end.
    """

    number: int
    params: dict[str, object]
    losses: tuple[float, ...]
    signs: tuple[float, ...] = ()
    running: bool = False
    complete: bool = False


def squash(behind: Floats) -> Floats:
    """Differences to the best as the surrogate sees them: in full up to `SQUASH`, beyond that by their logarithm."""
    return np.where(behind < SQUASH, behind, SQUASH * (1.0 + np.log(np.maximum(behind, SQUASH) / SQUASH)))


def log_loss(loss: float, worst: float) -> float:
    """The logarithm of a loss; of `worst` where it is larger or no positive number."""
    return math.log(min(loss, worst) if math.isfinite(loss) and loss > 0 else worst)


def own_share(behind: float) -> float:
    """o of the surrogate, for a trial so far behind the best at its milestone, in log loss."""
    return OWN * max(0.0, behind - BEHIND)


def squashed_losses(seen: Sequence[Known], worst: float, milestones: int) -> tuple[Floats, Floats]:
    """The smallest log loss at each milestone, and every trial's, squashed, shape (len(seen), milestones)."""
    longest = max(milestones, *(len(one.losses) for one in seen))
    rows = np.full((len(seen), longest), np.inf)
    for row, one in zip(rows, seen, strict=True):
        row[: len(one.losses)] = one.losses
    rows[~np.isfinite(rows) | (rows <= 0)] = worst
    logs = np.log(np.minimum(rows, worst))
    there = np.arange(longest)[None] < np.array([len(one.losses) for one in seen])[:, None]
    lead = np.where(there, logs, np.inf).min(axis=0)
    known = np.where(np.isfinite(lead), lead, 0.0)
    return lead, known + squash(logs - known)


def losses_reached(seen: Sequence[Known], milestones: int) -> dict[int, Floats]:
    """The losses at each milestone, ascending, of all trials that have reached it."""
    longest = max(len(one.losses) for one in seen)
    losses = ([one.losses[at] for one in seen if len(one.losses) > at] for at in range(longest))
    return {at: np.sort([v if math.isfinite(v) else math.inf for v in there]) for at, there in enumerate(losses)}


def telling(seen: Sequence[Known], logs: dict[int, Floats], lead: Floats) -> list[tuple[Known, int]]:
    """Which reports are looked at, as (trial, milestone), the most telling first."""

    def behind(one: Known) -> float:
        return float(logs[one.number][-1] - lead[len(one.losses) - 1])

    order = sorted(seen, key=lambda one: (behind(one) > BEHIND, -len(one.losses), behind(one), one.number))
    # All contenders first; of the others every k-th, so that what is left out is left out evenly.
    front = [one for one in order if behind(one) <= BEHIND][: TRIALS * 2 // 3]
    back = [one for one in order if one not in front]
    step = max(1, math.ceil(len(back) / max(1, TRIALS - len(front))))
    chosen = front + back[::step]
    rows = [(one, len(one.losses)) for one in chosen]
    for one in front:
        last = len(one.losses)
        earlier = sorted({max(1, round(last * share)) for share in (0.125, 0.35, 0.65)} - {last}, reverse=True)
        rows += [(one, m) for m in earlier[:EARLIER]]
    return rows[:ROWS]


def stale_ends(ends: Sequence[float]) -> int:
    """How many of the last complete trials were no better than one before them, by the margin."""
    best, stale = math.inf, 0
    for end in ends:
        stale = 0 if end < best - MARGIN else stale + 1
        best = min(best, end)
    return stale
