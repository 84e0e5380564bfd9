"""Tests which finalists are tied: the best trials, each trained again with the same further seeds.

Invariant: the value that made a trial a finalist is not used, since it was selected for being good.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from sweep.model.objectives import Objective

# Significance level of the tests.
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Finalist:
    """The result of a finalist.

    Args:
        values: of its finals, by seed.
        mean: of the values.
        spread: the standard deviation of the values; 0 for a single one.
        p: p-value of the one-sided paired t-test, over the seeds, that it is worse than the first finalist, after
            Holm's correction over all finalists. None for the first, and if one seed allows no test.
        tied: it is the first, or not significantly worse than the first at 5 %.
    """

    number: int
    values: tuple[float, ...]
    mean: float
    spread: float
    p: float | None
    tied: bool


def rank_finalists(measured: Mapping[int, Mapping[int, float]], objective: Objective) -> list[Finalist]:
    """The finalists, best mean first.

    Args:
        measured: by trial, the values of its finals by seed. Two trials are compared over the seeds that both have.
        objective: says which values are better.
    """
    turn = objective.minimised
    finals = {number: {seed: turn(value) for seed, value in seeds.items()} for number, seeds in measured.items()}
    ranked = sorted(finals, key=lambda number: statistics.fmean(finals[number].values()))
    raw = {number: _worse(finals[ranked[0]], finals[number]) for number in ranked[1:]}
    corrected = _holm({number: p for number, p in raw.items() if p is not None})
    finalists = []
    for number in ranked:
        values = tuple(measured[number][seed] for seed in sorted(measured[number]))
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        p = corrected.get(number)
        finalists.append(Finalist(number, values, statistics.fmean(values), spread, p, p is None or p >= LEVEL))
    return finalists


def finalists_text(finals: Mapping[int, Mapping[int, float]], objective: Objective) -> str:
    """The results as lines of text; empty without finals."""
    finalists = rank_finalists(finals, objective)
    if not finalists:
        return ""
    seeds = len(finalists[0].values)
    lines = [f"finals over {seeds} seed{'s' if seeds > 1 else ''}, mean {objective.name} ± standard deviation:"]
    for finalist in finalists:
        test = "" if finalist.p is None else f"  p {finalist.p:.3f}"
        tied = "tied with the first" if finalist.tied else "worse"
        word = "first" if finalist is finalists[0] else tied
        lines.append(f"  trial {finalist.number}: {finalist.mean:.4f} ± {finalist.spread:.4f}  {word}{test}")
    lines.append(
        "(one-sided paired t-tests against the first, Holm's correction, 5 %)"
        if seeds > 1
        else "(one seed allows no test: set search.seeds to 2 or more)"
    )
    return "\n".join(lines)


def _worse(first: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """The p-value that `other` is worse than `first`; None if they share fewer than two seeds."""
    from scipy.stats import ttest_rel

    seeds = sorted(first.keys() & other.keys())
    differences = [other[seed] - first[seed] for seed in seeds]
    if len(seeds) < 2:
        return None
    if max(differences) == min(differences):  # without any spread, the test would divide by zero
        return 0.0 if differences[0] > 0 else 1.0
    return float(ttest_rel([other[s] for s in seeds], [first[s] for s in seeds], alternative="greater").pvalue)


def _holm(raw: Mapping[int, float]) -> dict[int, float]:
    """P-values after Holm's step-down correction (1979), which hold jointly."""
    corrected: dict[int, float] = {}
    highest = 0.0
    for index, number in enumerate(sorted(raw, key=lambda key: raw[key])):
        highest = max(highest, min(1.0, raw[number] * (len(raw) - index)))
        corrected[number] = highest
    return corrected
