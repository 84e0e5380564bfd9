"""A Gaussian process over hyperparameters and training progress: what each trial would come to at its end.

Model of the logarithm of the loss y of trial i with hyperparameters x at progress t in (0, 1]:

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
data say otherwise. The scale of all covariances is the one that maximises the likelihood; the lengths and w are chosen
from a small grid by it.

Invariants: pure and deterministic. A trial far worse than the best at its milestone has much that is its own (o): how
badly it did says little about where the best lies, and must not bend the surface there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular

FLOOR = 0.1
START = 0.2
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """A kernel's shape; variances in units of the additive part's.

    Args:
        length: of the Matérn kernels, in widths of a coordinate.
        moving: w, the share of what hyperparameters do that changes with progress.
        seed: D2, and the noise of a report.
        lift: B2.
        joint: b, of the kernel over all coordinates at once.
        time: the length of kt.
        linear, shared: of the linear part, and of the curve that all share.
    """

    length: float
    moving: float
    seed: float
    lift: float = 0.0
    joint: float = 0.5
    time: float = 1.0
    linear: float = 1.0
    shared: float = 10.0


SHAPES = tuple(
    Shape(length, moving, 3e-3, time=time) for length in (0.3, 0.6) for moving in (0.1, 0.3) for time in (0.5, 1.0)
)


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
    found: Floats = (1.0 + scaled * (1.0 + scaled / 3.0)) * np.exp(-scaled)
    return found


def kx(a: Floats, b: Floats, shape: Shape) -> Floats:
    """The kernel over hyperparameters, shape (len(a), len(b))."""
    width = max(1, a.shape[1])
    gap = (a.T[:, :, None] - b.T[:, None, :]) / shape.length
    whole = np.sqrt(np.einsum("kij,kij->ij", gap, gap))
    found: Floats = matern52(np.abs(gap)).sum(axis=0) / width
    found += shape.linear / width * ((a - 0.5) @ (b - 0.5).T) + shape.joint * matern52(whole)
    return found


def covariance(a: Points, b: Points, s: Shape) -> Floats:
    """The covariance of y without a report's noise, shape (len(a), len(b))."""
    time: Floats = np.exp(-0.5 * ((warp(a.t)[:, None] - warp(b.t)[None]) / s.time) ** 2)
    fade = np.outer(FLOOR + 1.0 - a.t, FLOOR + 1.0 - b.t)
    same = (a.trial[:, None] == b.trial[None]) & (a.trial >= 0)[:, None]
    grown = np.outer(amplitude(a.t), amplitude(b.t))
    found: Floats = kx(a.x, b.x, s) * grown * (1.0 - s.moving + s.moving * time)
    found += (s.shared + s.seed * same * fade) * time
    found += same * np.outer(a.own, b.own)
    if s.lift:
        found += s.lift * (a.phi @ b.phi.T) * np.outer(a.t**2, b.t**2)
    return found


def variance(a: Points, s: Shape) -> Floats:
    """The diagonal of `covariance(a, a)`."""
    width = max(1, a.x.shape[1])
    found: Floats = s.linear * ((a.x - 0.5) ** 2).sum(axis=1) / width + (a.x.shape[1] > 0) + s.joint
    found = found * amplitude(a.t) ** 2 + s.shared + np.where(a.trial < 0, 0.0, s.seed * (FLOOR + 1.0 - a.t) ** 2)
    found += a.own**2 + s.lift * (a.phi**2).sum(axis=1) * a.t**4
    return found


@dataclass(frozen=True)
class Surrogate:
    """The fitted process.

    Args:
        y: log losses at `seen`.
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
        cross = covariance(self.seen, every, self.shape)
        mean: Floats = self.centre + cross.T @ self.alpha
        half = solve_triangular(self.chol, cross, lower=True, check_finite=False)
        rest = (1.0 - cross.T @ self.ones) / math.sqrt(self.ones.sum())
        var = variance(every, self.shape) - np.einsum("ij,ij->j", half, half) + rest**2
        if against is not None:
            both = covariance(at, against, self.shape)[:, 0] - half[:, :-1].T @ half[:, -1] + rest[:-1] * rest[-1]
            mean, var = mean[:-1], var[:-1] + var[-1] - 2.0 * both
        return mean, np.sqrt(self.scale * np.maximum(var, 1e-10))


def fit_shape(seen: Points, y: Floats, shape: Shape) -> Surrogate:
    """The process of one shape, with the scale that maximises the likelihood; the constant is integrated out."""
    n = len(y)
    cov = covariance(seen, seen, shape)
    cov[np.diag_indices(n)] += shape.seed * (FLOOR + 1.0 - seen.t) ** 2 + 1e-6
    chol: Floats = np.asarray(np.linalg.cholesky(cov), dtype=np.float64)
    ones, solved = cho_solve((chol, True), np.column_stack([np.ones(n), y]), check_finite=False).T
    centre = float(ones @ y / ones.sum())
    alpha = solved - centre * ones
    # A weak inverse-gamma prior keeps the scale from collapsing where two reports are all there is.
    scale = (float((y - centre) @ alpha) + 0.04) / (n + 2.0)
    evidence = -0.5 * n * math.log(scale) - float(np.log(np.diag(chol)).sum()) - 0.5 * math.log(ones.sum())
    return Surrogate(seen, y, shape, centre, scale, chol, alpha, ones, evidence)


def likeliest(seen: Points, y: Floats, shapes: Sequence[Shape]) -> Shape:
    """The shape with the greatest likelihood."""
    return max(shapes, key=lambda shape: fit_shape(seen, y, shape).evidence)


def believing(model: Surrogate, at: Points) -> Surrogate:
    """The process once its own means at these rows count as seen: what is being trained need not be tried again.

    Ginsbourger, Le Riche and Carraro, Kriging is well-suited to parallelize optimization, 2010 (kriging believer)."""
    mean, _ = model.predict(at)
    fitted = fit_shape(model.seen.with_rows(at), np.concatenate([model.y, mean]), model.shape)
    return replace(fitted, scale=model.scale)
