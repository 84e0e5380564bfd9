"""Fits the parameters of the kernel: coordinate ascent of the likelihood on a grid.

What is fitted are the length scales, w, the length scale of kt, D2 and b. A weak prior holds each to its default.

Invariants: pure and deterministic. Each point of the grid is evaluated at most once in a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sweep.search.strategy.gaussian_process import fit
from sweep.search.strategy.kernel import Floats, KernelParameters, Pairs, Points, pairs

DEFAULT = KernelParameters((0.4,), 0.6, 3e-3)
LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
# Values of the other parameters that are searched, ascending.
GRIDS: dict[str, tuple[float, ...]] = {
    "moving": (0.03, 0.1, 0.3, 0.6, 0.9),
    "time": (0.25, 0.5, 1.0),
    "seed": (3e-5, 3e-4, 3e-3, 3e-2),
    "joint": (0.15, 0.5, 1.5),
}
# Log likelihood that a step away from the default costs, times its square.
STEP_COST = 0.5

# Indices into `LENGTHS`, one for each group of coordinates, and then into `GRIDS`.
GridPoint = tuple[int, ...]


@dataclass
class LikelihoodSearch:
    """A search for the parameters that maximise the likelihood of observations.

    Args:
        start: gives the parameters that are not searched.
        groups: coordinates that share a length scale: those of one parameter.
        known: known variances of y, see `fit`.
    """

    seen: Points
    y: Floats
    start: KernelParameters
    groups: Sequence[Sequence[int]]
    known: Floats | None = None
    _among: Pairs = field(init=False)
    _values: dict[KernelParameters, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._among = pairs(self.seen, self.seen)

    def run(self, rounds: int = 2) -> KernelParameters:
        """The parameters that coordinate ascent finds from the default, in at most so many rounds."""
        at = self._origin
        for _ in range(rounds):
            before = at
            for k in range(len(at)):
                for step in (-1, 1):
                    at = self._climb(at, k, step)
            if at == before:
                break
        return self._parameters(at)

    def _climb(self, at: GridPoint, k: int, step: int) -> GridPoint:
        """Go along coordinate k of the grid for as long as the likelihood increases."""
        while 0 <= at[k] + step < self._sizes[k]:
            other = (*at[:k], at[k] + step, *at[k + 1 :])
            if self._value(other) <= self._value(at):
                break
            at = other
        return at

    @property
    def _origin(self) -> GridPoint:
        lengths = (LENGTHS.index(DEFAULT.lengths[0]) for _ in self.groups)
        return (*lengths, *(grid.index(getattr(DEFAULT, name)) for name, grid in GRIDS.items()))

    @property
    def _sizes(self) -> GridPoint:
        return (*(len(LENGTHS) for _ in self.groups), *(len(grid) for grid in GRIDS.values()))

    def _value(self, at: GridPoint) -> float:
        """The log posterior at a point of the grid, up to a constant."""
        parameters = self._parameters(at)
        if parameters not in self._values:
            away = sum((a - b) ** 2 for a, b in zip(at, self._origin, strict=True))
            evidence = fit(self.seen, self.y, parameters, self._among, self.known).evidence
            self._values[parameters] = evidence - STEP_COST * away
        return self._values[parameters]

    def _parameters(self, at: GridPoint) -> KernelParameters:
        lengths = [DEFAULT.lengths[0]] * max(1, sum(len(group) for group in self.groups))
        for group, index in zip(self.groups, at, strict=False):
            for column in group:
                lengths[column] = LENGTHS[index]
        rest = {name: GRIDS[name][index] for name, index in zip(GRIDS, at[len(self.groups) :], strict=True)}
        return replace(self.start, lengths=tuple(lengths), **rest)
