"""A Gaussian process over hyperparameters and training progress: what each trial would come to at its end.

Model of y, the compressed logarithm of the loss (see `forecast`), of trial i with hyperparameters x at progress t in
(0, 1]:

    y_i(t) = c + m(t) + f(x, t) + d_i(t) + t² φ_i·β + noise
    cov m = M2 kt(t, t')                                    the learning curve that all trials share
    cov f = a(t) a(t') kx(x, x') (1 - w + w kt(t, t'))      what hyperparameters do: more as training goes on (a),
                                                            and not the same throughout (w)
    cov d = [i = i'] (D2 (1.1 - t)(1.1 - t') kt + o_i²)     what a trial's seed does, fading as the schedule decays,
                                                            and what is its own for good
    cov β = B2 I                                            what grad_norm and the slope, φ, say of what is to come
    kx = linear + a sum over coordinates of k52 along it + b k52 over all of them

with k52 the Matérn kernel of smoothness 5/2 (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq.
4.17), kt squared-exponential in the mean of t and log t, and a flat prior on c (ibid., section 2.7). Freezing trials
and predicting their ends from a joint process over hyperparameters and time is Swersky, Snoek and Adams, Freeze-Thaw
Bayesian Optimization, 2014. The additive part says that the best learning rate depends little on the rank until the
data say otherwise. The scale of all covariances is the one that maximises the likelihood; a length for every
coordinate, w, the length of kt, D2 and b climb it on a grid, held to their defaults by a weak prior.

Invariants: pure and deterministic. A trial far worse than the best at its milestone has much that is its own (o): how
badly it did says little about where the best lies, and must not bend the surface there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs

FLOOR = 0.1
START = 0.4
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """A kernel's shape; variances in units of the additive part's.

    Args:
        lengths: of the Matérn kernels, in widths of a coordinate; one for each coordinate, or a single one for all.
        moving: w, the share of what hyperparameters do that changes with progress.
        seed: D2, and the noise of a report.
        lift: B2.
        joint: b, of the kernel over all coordinates at once.
        time: the length of kt.
        linear, shared: of the linear part, and of the curve that all share.
    """

    lengths: tuple[float, ...]
    moving: float
    seed: float
    lift: float = 0.0
    joint: float = 0.5
    time: float = 0.5
    linear: float = 1.0
    shared: float = 10.0


DEFAULT = Shape((0.4,), 0.6, 3e-3)
# What climbing goes over, ascending; a step away from the default costs `STEP` of log likelihood, times its square.
GRIDS: dict[str, tuple[float, ...]] = {
    "lengths": (0.1, 0.2, 0.4, 0.8, 1.6),
    "moving": (0.03, 0.1, 0.3, 0.6, 0.9),
    "time": (0.25, 0.5, 1.0),
    "seed": (3e-5, 3e-4, 3e-3, 3e-2),
    "joint": (0.15, 0.5, 1.5),
}
STEP = 0.5


@dataclass(frozen=True, slots=True)
class Points:
    """Where trials are predicted or were seen, one row each.

    Args:
        x: shape (n, coordinates). t: progress in (0, 1], shape (n,). trial: shape (n,), -1 for one that does not exist
        yet.
        phi: shape (n, features); zeros where nothing is known.
        own: standard deviation of what is a trial's own for good, shape (n,); 0 for one that does not exist yet.
    """

    x: Floats
    t: Floats
    trial: Ints
    phi: Floats
    own: Floats

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, chosen: Ints) -> Points:
        return Points(self.x[chosen], self.t[chosen], self.trial[chosen], self.phi[chosen], self.own[chosen])

    def with_rows(self, other: Points) -> Points:
        return Points(
            np.vstack([self.x, other.x]),
            np.concatenate([self.t, other.t]),
            np.concatenate([self.trial, other.trial]),
            np.vstack([self.phi, other.phi]),
            np.concatenate([self.own, other.own]),
        )


def warp(t: Floats) -> Floats:
    """Progress as kt sees it: early reports lie further apart than late ones."""
    return 0.5 * (t + np.log1p(23.0 * t) / math.log(24.0))


def amplitude(t: Floats) -> Floats:
    """How large the differences between configurations are, as a share of those at the end: all start from the same
    base."""
    found: Floats = START + (1.0 - START) * warp(t)
    return found


def matern52(distance: Floats) -> Floats:
    scaled = math.sqrt(5.0) * distance
    found: Floats = np.exp(-scaled)
    found *= 1.0 + scaled * (1.0 + scaled / 3.0)
    return found


@dataclass(frozen=True)
class Pairs:
    """What the covariance of two sets of points needs of them, whatever the shape.

    Args:
        gap: absolute differences along each coordinate, shape (coordinates, n, m).
        warped: differences of warped progress; same: of one trial; the others: products of what each side has.
    """

    gap: Floats
    dot: Floats
    warped: Floats
    grown: Floats
    fade: Floats
    same: Floats
    own: Floats
    phi: Floats


def pairs(a: Points, b: Points) -> Pairs:
    # Mostly, b are ends: what depends on progress alone is a column.
    tb = b.t[:1] if len(b) and (b.t == b.t[0]).all() else b.t
    same = ((a.trial[:, None] == b.trial[None]) & (a.trial >= 0)[:, None]).astype(np.float64)
    return Pairs(
        np.abs(a.x.T[:, :, None] - b.x.T[:, None, :]),
        (a.x - 0.5) @ (b.x - 0.5).T,
        warp(a.t)[:, None] - warp(tb)[None],
        amplitude(a.t)[:, None] * amplitude(tb)[None],
        (FLOOR + 1.0 - a.t)[:, None] * (FLOOR + 1.0 - tb)[None],
        same,
        same * a.own[:, None] * b.own[None],
        (a.phi @ b.phi.T) * (a.t**2)[:, None] * (tb**2)[None],
    )


def kx(gap: Floats, dot: Floats, shape: Shape) -> Floats:
    """The kernel over hyperparameters, shape (n, m), from `Pairs`."""
    width = max(1, len(gap))
    scaled = gap / np.array(shape.lengths)[:, None, None]
    whole = np.sqrt(np.einsum("kij,kij->ij", scaled, scaled))
    found: Floats = matern52(scaled).sum(axis=0)
    found += shape.linear * dot
    found /= width
    found += shape.joint * matern52(whole)
    return found


def covariance(both: Pairs, s: Shape) -> Floats:
    """The covariance of y without a report's noise, shape (n, m)."""
    time: Floats = np.exp(-0.5 * (both.warped / s.time) ** 2)
    found: Floats = kx(both.gap, both.dot, s)
    found *= both.grown * (1.0 - s.moving + s.moving * time)
    found += s.shared * time
    found += both.same * (s.seed * both.fade * time)
    found += both.own
    if s.lift:
        found += s.lift * both.phi
    return found


def variance(a: Points, s: Shape) -> Floats:
    """The diagonal of the covariance of points with themselves."""
    width = max(1, a.x.shape[1])
    found: Floats = s.linear * ((a.x - 0.5) ** 2).sum(axis=1) / width + (a.x.shape[1] > 0) + s.joint
    found = found * amplitude(a.t) ** 2 + s.shared + np.where(a.trial < 0, 0.0, s.seed * (FLOOR + 1.0 - a.t) ** 2)
    found += a.own**2 + s.lift * (a.phi**2).sum(axis=1) * a.t**4
    return found


@dataclass(frozen=True)
class Surrogate:
    """The fitted process.

    Args:
        y: compressed log losses at `seen`.
        ones: the inverse covariance times a vector of ones, for the flat prior on c.
        evidence: the log likelihood, up to a constant.
    """

    seen: Points
    y: Floats
    shape: Shape
    centre: float
    scale: float
    chol: Floats
    alpha: Floats
    ones: Floats
    evidence: float

    def predict(self, at: Points, against: Points | None = None) -> tuple[Floats, Floats]:
        """Mean and standard deviation of y, each of shape (len(at),), without a report's noise.

        With `against`, one row, the deviation is that of the difference to y there: what nobody knows yet of the curve
        that all share does not say that one trial may beat another.
        """
        every = at if against is None else at.with_rows(against)
        cross = covariance(pairs(self.seen, every), self.shape)
        mean: Floats = self.centre + cross.T @ self.alpha
        half, _ = dtrtrs(self.chol, cross, lower=1)
        rest = (1.0 - cross.T @ self.ones) / math.sqrt(self.ones.sum())
        var = variance(every, self.shape) - np.einsum("ij,ij->j", half, half) + rest**2
        if against is not None:
            both = covariance(pairs(at, against), self.shape)[:, 0] - half[:, :-1].T @ half[:, -1]
            both += rest[:-1] * rest[-1]
            mean, var = mean[:-1], var[:-1] + var[-1] - 2.0 * both
        return mean, np.sqrt(self.scale * np.maximum(var, 1e-10))


def fit_shape(seen: Points, y: Floats, shape: Shape, among: Pairs | None = None) -> Surrogate:
    """The process of one shape, with the scale that maximises the likelihood; the constant is integrated out."""
    n = len(y)
    cov = covariance(among or pairs(seen, seen), shape)
    cov[np.diag_indices(n)] += shape.seed * (FLOOR + 1.0 - seen.t) ** 2 + 1e-6
    chol, failed = dpotrf(cov, lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError(f"the covariance of {n} reports is not positive definite")
    solved, _ = dpotrs(chol, np.column_stack([np.ones(n), y]), lower=1)
    ones, weighed = solved.T
    centre = float(ones @ y / ones.sum())
    alpha = weighed - centre * ones
    # A weak inverse-gamma prior keeps the scale from collapsing where two reports are all there is.
    scale = (float((y - centre) @ alpha) + 0.04) / (n + 2.0)
    evidence = -0.5 * n * math.log(scale) - float(np.log(np.diag(chol)).sum()) - 0.5 * math.log(ones.sum())
    return Surrogate(seen, y, shape, centre, scale, chol, alpha, ones, evidence)


def likeliest(seen: Points, y: Floats, start: Shape, groups: Sequence[Sequence[int]], rounds: int = 2) -> Shape:
    """The shape that climbing the likelihood from `start` finds, one number at a time.

    Args:
        groups: coordinates that share a length.
    """
    among = pairs(seen, seen)
    known: dict[Shape, float] = {}
    length = GRIDS["lengths"].index(DEFAULT.lengths[0])
    names = [name for name in GRIDS if name != "lengths"]
    zero = {name: GRIDS[name].index(getattr(DEFAULT, name)) for name in names}

    def made(at: tuple[int, ...]) -> Shape:
        lengths = [0.0] * max(1, sum(len(group) for group in groups))
        for group, step in zip(groups, at, strict=False):
            for column in group:
                lengths[column] = GRIDS["lengths"][step]
        lengths = [one or DEFAULT.lengths[0] for one in lengths]
        rest = {name: GRIDS[name][step] for name, step in zip(names, at[len(groups) :], strict=True)}
        return replace(start, lengths=tuple(lengths), **rest)

    origin = (*(length for _ in groups), *(zero[name] for name in names))
    tops = (*(len(GRIDS["lengths"]) for _ in groups), *(len(GRIDS[name]) for name in names))

    def worth(at: tuple[int, ...]) -> float:
        shape = made(at)
        if shape not in known:
            away = sum((a - b) ** 2 for a, b in zip(at, origin, strict=True))
            known[shape] = fit_shape(seen, y, shape, among).evidence - STEP * away
        return known[shape]

    at = origin
    for _ in range(rounds):
        before = at
        for k in range(len(at)):
            for step in (-1, 1):
                while 0 <= at[k] + step < tops[k]:
                    other = (*at[:k], at[k] + step, *at[k + 1 :])
                    if worth(other) <= worth(at):
                        break
                    at = other
        if at == before:
            break
    return made(at)


def believing(model: Surrogate, at: Points) -> Surrogate:
    """The process once its own means at these rows count as seen: what is being trained need not be tried again.

    Ginsbourger, Le Riche and Carraro, Kriging is well-suited to parallelize optimization, 2010 (kriging believer)."""
    mean, _ = model.predict(at)
    fitted = fit_shape(model.seen.with_rows(at), np.concatenate([model.y, mean]), model.shape)
    return replace(fitted, scale=model.scale)
