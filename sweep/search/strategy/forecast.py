"""What the trials of a sweep would come to at their ends, and what the next step of each promises.

Invariants: pure and deterministic; the same curves give the same forecast in whatever order they are handed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from sweep.search.strategy.encoding import Axis, Floats, encode, gaps
from sweep.search.strategy.gaussian_process import (
    DEFAULT,
    Ints,
    Points,
    Shape,
    Surrogate,
    believing,
    fit_shape,
    likeliest,
)
from sweep.search.strategy.observations import (
    MARGIN,
    SQUASH,
    TRIALS,
    Known,
    log_loss,
    losses_reached,
    own_share,
    squashed_losses,
    stale_ends,
    telling,
)

SHAPE_ROWS = 48
# The shape is judged by the reports at these shares of a trial, so that it is judged anew only when one is reached.
MARKS = (0.0, 0.125, 0.35, 1.0)
# Among the best 1/OWED of a milestone, a trial goes on in any case.
OWED = 4
# Of the trials that have reached a milestone, this many are above suspicion.
FEW = 3
# What is taken off the promise of the worst trial of many at a milestone, and of a new one that is closest to it.
SHADE = 5.0
# Complete trials crowd others out within this share of every coordinate, less where there are more than `CROWDED`.
CROWD, CROWDED = 0.08, 16
# After `PATIENT` complete trials that brought nothing that share shrinks, and is halved after `HALVED` more: the best
# may lie between two of them. From then on what lies beside any of the best `SEVERAL` is tried too.
PATIENT, HALVED, SEVERAL = 8, 4, 3
# B2 of the surrogate where signs are used: a sign one standard deviation off moves an end by a seventh of the scale at
# first.
LIFT = 0.02


@dataclass(frozen=True)
class Forecast:
    """The fitted surrogate with what the next steps are measured against.

    Args:
        best: log loss that an end must fall below to count as better: by a margin that of the best complete trial;
            before there is one, what the trial that looks best is expected to come to. front: that trial's end.
        rival: while no trial is complete, the same two of the trial that looks second best. crowd: whether others run.
        stale: complete trials in a row, by number, that were no better than an earlier one.
        lead: the smallest log loss at each milestone; worst: the loss that counts for those that are not finite.
        width: features of `signs`. x: the points of the trials that have reported, by `place`; done: which are
            complete. reached: the losses at each milestone (from 0), ascending. shades: see `shade`.
        beside: the unfinished trial that is owed its end, -1 for none.
    """

    model: Surrogate
    axes: tuple[Axis, ...]
    milestones: int
    best: float
    front: Points | None
    stale: int
    lead: Floats
    worst: float
    width: int = 0
    x: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    numbers: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    done: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    place: Mapping[int, int] = field(default_factory=dict)
    reached: Mapping[int, Floats] = field(default_factory=dict)
    beside: int = -1
    rival: tuple[float, Points] | None = None
    crowd: bool = False
    shades: Floats = field(default_factory=lambda: np.zeros(0))

    def points(self, known: Sequence[Known]) -> Points:
        """The ends of trials."""
        phi = np.array([one.signs or (0.0,) * self.width for one in known]).reshape(len(known), self.width)
        if all(one.number in self.place for one in known):
            x = self.x[[self.place[one.number] for one in known]]
        else:
            x = encode(self.axes, [one.params for one in known])
        numbers = np.array([one.number for one in known], dtype=np.int64)
        own = np.array([own_share(self._behind(one)) for one in known])
        return Points(x, np.ones(len(known)), numbers, phi, own)

    def new(self, x: Floats) -> Points:
        """The ends of trials that do not exist yet, at points of shape (n, coordinates)."""
        n = len(x)
        return Points(x, np.ones(n), np.full(n, -1, dtype=np.int64), np.zeros((n, self.width)), np.zeros(n))

    def _behind(self, one: Known) -> float:
        """How far a trial lies behind the best at its last milestone, in log loss."""
        if not one.losses:
            return 0.0
        behind = log_loss(one.losses[-1], self.worst) - float(self.lead[len(one.losses) - 1])
        return behind if behind < SQUASH else SQUASH * (1.0 + math.log(behind / SQUASH))  # as `squash`, of one number

    def ends(self, at: Points) -> tuple[Floats, Floats]:
        """Mean of the squashed log loss at the end, and the deviation of its difference to the best trial's."""
        return self.model.predict(at, self.front)

    def loss(self, mean: float) -> float:
        """The loss that an end of the surrogate's stands for: `squash` undone, at most the worst that was seen."""
        lead = float(self.lead[-1])
        behind = mean - lead
        if not math.isfinite(lead) or behind <= SQUASH:
            return math.exp(mean)
        most = max(math.log(self.worst), mean)
        return math.exp(min(most, lead + SQUASH * math.exp(min(behind / SQUASH - 1.0, 100.0))))

    def promise(self, at: Points, left: Floats) -> Floats:
        """The logarithm of the expected improvement over `best` for each milestone that remains.

        Expected improvement: Jones, Schonlau and Welch, Efficient Global Optimization, 1998, eq. 15; its logarithm as
        in Ament et al., Unexpected Improvements to Expected Improvement, 2023, for what lies far behind. By cost:
        Swersky, Snoek and Adams, Multi-Task Bayesian Optimization, 2013.

        Where others run, the front is measured against its rival until a trial is complete. It can never better itself,
        and would be paused for being the best, again and again until a trial ends that was second best; and it need
        not make room, since the others search on. A single worker looks further before it commits itself: its sweeps
        were as long either way.
        """
        mean, sd = self.ends(at)
        best = np.full(len(at), self.best)
        if self.crowd and self.front is not None and self.rival is not None:
            leads = np.flatnonzero(at.trial == self.front.trial[0])
            if len(leads):
                best[leads], second = self.rival
                sd[leads] = self.model.predict(at.rows(leads), second)[1]
        return log_improvement((best - mean) / sd) + np.log(sd) - np.log(left) - self._crowding(at)

    def _crowding(self, at: Points) -> Floats:
        """What is taken off the promise of a trial close to a complete one, and of a new one close to any.

        A trial beside a complete one would tell little that is new, and a new one beside a paused one is that one
        over again. So complete trials spread over all that may yet be best, as in local penalisation (Gonzalez et
        al., Batch Bayesian Optimization via Local Penalization, 2016), instead of repeating the best one; the radius
        shrinks as they fill it.
        """
        if not at.x.shape[1]:
            return np.zeros(len(at))
        done = self.x[self.done]
        found = _crowded(at.x, done, at.trial[:, None] == self.numbers[self.done][None], self.apart)
        fresh = at.trial < 0
        if fresh.any():
            open_ = self.x[~self.done]
            found[fresh] += self.shades[gaps(at.x[fresh], self.x).argmin(axis=1)]
            none = np.zeros((int(fresh.sum()), len(open_)), dtype=np.bool_)
            found[fresh] += _crowded(at.x[fresh], open_, none, self.apart)
        return found

    @property
    def centres(self) -> int:
        """How many of the best complete trials others are tried beside."""
        return 1 if self.stale <= PATIENT else SEVERAL

    @property
    def apart(self) -> float:
        """The share of every coordinate within which trials crowd others out."""
        return CROWD / (1.0 + max(0, self.stale - PATIENT) / HALVED)

    def shade(self, one: Known) -> float:
        """What is taken off the promise of a trial in the worse half of those that have reached its milestone.

        Nothing for the best `FEW` and for the median of the others, most for the last of many. A check that asks no
        model: a surface that has yet to see a complete trial in some region may hope there for what never comes true,
        and pay for it one trial after another.
        """
        if not one.losses or one.complete:
            return 0.0
        rank, there = self._rank(one, len(one.losses))
        return SHADE * max(0.0, 2.0 * (rank - FEW) / there - 1.0)

    def owed(self, one: Known) -> bool:
        """Whether a trial goes on whatever the forecast says: it was among the best 1/`OWED` of those that have reached
        the last of the milestones 1, `OWED`, `OWED`², … that it has reached.

        So what asynchronous successive halving would train is trained too, however wrong the forecast is. And while
        complete trials bring nothing, every second one is the closest to the best that has begun (`beside`).
        """
        if not one.losses or one.complete:
            return False
        if one.number == self.beside:
            return True
        rung = OWED ** int(math.log(len(one.losses) + 0.5, OWED))
        rank, there = self._rank(one, rung)
        return rank < there // OWED

    def _rank(self, one: Known, milestone: int) -> tuple[int, int]:
        """How many trials were better at a milestone, and how many have reached it."""
        there = self.reached[milestone - 1]
        loss = one.losses[milestone - 1]
        return int(np.searchsorted(there, loss if math.isfinite(loss) else math.inf)), len(there)

    def assuming(self, known: Sequence[Known]) -> Forecast:
        """The forecast once these trials' ends are taken to be what it expects."""
        if not known:
            return self
        chosen = sorted(known, key=lambda one: (-len(one.losses), one.number))[:TRIALS]
        return replace(self, model=believing(self.model, self.points(chosen)), crowd=True)


def log_improvement(z: Floats) -> Floats:
    """log(z Φ(z) + φ(z)), stable for z far below zero."""
    log_pdf = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    far = np.minimum(z, -1.0)
    ratio = np.exp(log_ndtr(far) + 0.5 * far**2 + 0.5 * math.log(2 * math.pi))  # Mills' ratio
    tail = log_pdf + np.log(np.maximum(1.0 + far * ratio, 1e-12))
    near = np.log(np.maximum(z * ndtr(z) + np.exp(log_pdf), 1e-300))
    return np.where(z > -1.0, near, np.where(z > -50.0, tail, log_pdf - 2.0 * np.log(np.maximum(-z, 1.0))))


def forecast(known: Sequence[Known], axes: tuple[Axis, ...], milestones: int) -> Forecast | None:
    """The forecast of a sweep; None while fewer than two trials have reported."""
    seen = sorted((one for one in known if one.losses), key=lambda one: one.number)
    if len(seen) < 2:
        return None
    finite = [loss for one in seen for loss in one.losses if math.isfinite(loss) and loss > 0]
    if not finite:
        return None
    worst = max(finite)
    lead, squashed = squashed_losses(seen, worst, milestones)
    logs = {one.number: row[: len(one.losses)] for one, row in zip(seen, squashed, strict=True)}
    done = [float(logs[one.number][-1]) for one in seen if one.complete]
    width = max((len(one.signs) for one in seen), default=0)
    place = {one.number: at for at, one in enumerate(seen)}
    empty = Forecast(_none(), axes, milestones, 0.0, None, stale_ends(done), lead, worst, width=width)
    empty = replace(
        empty,
        x=encode(axes, [one.params for one in seen]),
        numbers=np.array([one.number for one in seen], dtype=np.int64),
        done=np.array([one.complete for one in seen]),
        place=place,
        reached=losses_reached(seen, milestones),
    )
    empty = replace(empty, shades=np.array([empty.shade(one) for one in seen]))
    shape = replace(_shape(empty, seen, logs), lift=LIFT if width else 0.0)
    rows = telling(seen, logs, lead)
    ends = empty.points([one for one, _ in rows])
    points = replace(ends, t=np.array([m / milestones for _, m in rows]))
    y = np.array([logs[one.number][m - 1] for one, m in rows])
    found = replace(empty, model=fit_shape(points, y, shape))
    ends = found.points(seen)
    mean = np.array([logs[one.number][-1] if one.complete else math.inf for one in seen])
    if not done:
        mean, _ = found.model.predict(ends)
    order = np.argsort(mean, kind="stable")
    (best, front), rival = ((float(mean[at]) - MARGIN, ends.rows(np.array([at]))) for at in order[:2])
    beside = _beside(found, ends.rows(order[: found.centres]), len(done))
    return replace(found, best=best, front=front, rival=None if done else rival, beside=beside)


def _beside(seen: Forecast, best: Points, complete: int) -> int:
    """The unfinished trial closest to one of the best, not crowded or shaded, at every second turn; -1: none."""
    if not seen.stale or complete % 2:
        return -1
    gap = np.sqrt(((seen.x[:, None] - best.x[None]) ** 2).sum(axis=2)).min(axis=1)
    gap[seen.done | (seen.shades > 0) | (gaps(seen.x, seen.x[seen.done]).min(axis=1) < seen.apart)] = np.inf
    at = int(gap.argmin())
    return int(seen.numbers[at]) if math.isfinite(gap[at]) else -1


def _crowded(x: Floats, others: Floats, same: npt.NDArray[np.bool_], apart: float) -> Floats:
    """Six at one of the others, nothing a radius away from all, but for those that are the same trial."""
    if not len(others):
        return np.zeros(len(x))
    radius = apart * min(1.0, (CROWDED / len(others)) ** (1.0 / x.shape[1]))
    gap = np.where(same, np.inf, gaps(x, others)).min(axis=1)
    found: Floats = 6.0 * np.maximum(0.0, 1.0 - gap / radius)
    return found


def _shape(empty: Forecast, seen: Sequence[Known], logs: dict[int, Floats]) -> Shape:
    """The likeliest shape by the reports at `MARKS`."""
    marks = sorted({max(1, round(share * empty.milestones)) for share in MARKS})
    reached = {one.number: [m for m in marks if m <= len(one.losses)] for one in seen}
    order = sorted(seen, key=lambda one: (-len(reached[one.number]), one.number))
    rows = [(one, m) for one in order for m in reached[one.number]][:SHAPE_ROWS]
    at = np.array([empty.place[one.number] for one, _ in rows])
    t = np.array([m / empty.milestones for _, m in rows])
    y = np.array([logs[one.number][m - 1] for one, m in rows])
    used = {m for _, m in rows}
    lead = {m: min(logs[one.number][m - 1] for one in seen if len(one.losses) >= m) for m in used}
    behind = {one.number: logs[one.number][reached[one.number][-1] - 1] - lead[reached[one.number][-1]] for one in seen}
    own = np.array([own_share(behind[one.number]) for one, _ in rows])
    columns, groups = 0, []
    for one in empty.axes:
        groups.append(tuple(range(columns, columns + one.width)))
        columns += one.width
    return _judged(tuple(v.tobytes() for v in (empty.x[at], t, at, own, y)), tuple(groups))


@lru_cache(maxsize=64)
def _judged(data: tuple[bytes, ...], groups: tuple[tuple[int, ...], ...]) -> Shape:
    """The likeliest shape; remembered, since the same reports are asked about again and again."""
    x, t, own, y = (np.frombuffer(data[k]) for k in (0, 1, 3, 4))
    n = len(t)
    seen = Points(x.reshape(n, -1), t, np.frombuffer(data[2], dtype=np.int64), np.zeros((n, 0)), own)
    return likeliest(seen, y, DEFAULT, groups, 2 if n < SHAPE_ROWS else 1)


def _none() -> Surrogate:
    empty = Points(np.zeros((1, 0)), np.ones(1), np.zeros(1, dtype=np.int64), np.zeros((1, 0)), np.zeros(1))
    return fit_shape(empty, np.zeros(1), DEFAULT)
