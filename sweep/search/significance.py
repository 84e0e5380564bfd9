"""Which of the finalists are tied: the best trials, each trained again with the same further seeds.

Invariant: the value that made a trial a finalist takes no part, since it was chosen for being good.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Finalist:
    """A finalist's standing.

    Args:
        mean, spread: over its finals; the spread is their standard deviation, 0 for a single one.
        p: of the one-sided paired t-test, over the seeds, that it is worse than the first, after Holm's correction
            over all finalists; None for the first, and where one seed allows no test.
        tied: it is the first, or the test does not tell it from the first at 5 %.
    """

    number: int
    values: tuple[float, ...]
    mean: float
    spread: float
    p: float | None
    tied: bool


def standings(finals: Mapping[int, Mapping[int, float]]) -> list[Finalist]:
    """Finalists, best mean first.

    Args:
        finals: by trial, the values of its finals by seed; a pair is compared over the seeds that both have.
    """
    ranked = sorted(finals, key=lambda number: statistics.fmean(finals[number].values()))
    raw = {number: _worse(finals[ranked[0]], finals[number]) for number in ranked[1:]}
    corrected = _holm({number: p for number, p in raw.items() if p is not None})
    found = []
    for number in ranked:
        values = tuple(finals[number][seed] for seed in sorted(finals[number]))
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        p = corrected.get(number)
        found.append(Finalist(number, values, statistics.fmean(values), spread, p, p is None or p >= LEVEL))
    return found


def standings_text(finals: Mapping[int, Mapping[int, float]], metric: str) -> str:
    """The result for a person; empty without finals."""
    found = standings(finals)
    if not found:
        return ""
    seeds = len(found[0].values)
    lines = [f"finals over {seeds} seed{'s' if seeds > 1 else ''}, mean {metric} ± standard deviation:"]
    for one in found:
        test = "" if one.p is None else f"  p {one.p:.3f}"
        word = "first" if one is found[0] else "tied with the first" if one.tied else "worse"
        lines.append(f"  trial {one.number}: {one.mean:.4f} ± {one.spread:.4f}  {word}{test}")
    lines.append(
        "(one-sided paired t-tests against the first, Holm's correction, 5 %)"
        if seeds > 1
        else "(one seed allows no test: set search.seeds to 2 or more)"
    )
    return "\n".join(lines)


def _worse(first: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """The p-value that `other` is worse than `first`; None where too few seeds are common."""
    from scipy.stats import ttest_rel

    seeds = sorted(first.keys() & other.keys())
    differences = [other[seed] - first[seed] for seed in seeds]
    if len(seeds) < 2:
        return None
    if max(differences) == min(differences):  # no spread at all: the test has nothing to divide by
        return 0.0 if differences[0] > 0 else 1.0
    return float(ttest_rel([other[s] for s in seeds], [first[s] for s in seeds], alternative="greater").pvalue)


def _holm(raw: Mapping[int, float]) -> dict[int, float]:
    """Holm's step-down correction (1979): p-values that hold together."""
    found: dict[int, float] = {}
    highest = 0.0
    for index, number in enumerate(sorted(raw, key=lambda key: raw[key])):
        highest = max(highest, min(1.0, raw[number] * (len(raw) - index)))
        found[number] = highest
    return found
