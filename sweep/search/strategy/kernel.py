"""The covariance of the Gaussian process, for points in hyperparameters and progress.

The symbols are those of the table in `gaussian_process`.

Invariants: pure. Whatever does not depend on the kernel's parameters is computed once, in `Pairs`, since fitting them
computes many covariances of the same points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What is left at the end of training of the variance by a seed, and of a report's noise: they fade as FLOOR + 1 - t.
FLOOR = 0.1
# Amplitude of the differences between hyperparameters at t = 0, as a share of that at t = 1.
START = 0.4


@dataclass(frozen=True, slots=True)
class KernelParameters:
    """The parameters of the kernel; variances in units of the additive part's variance.

    Args:
        lengths: length scales of the Matérn kernels, in widths of a coordinate: one for each coordinate, or just one.
        moving: w, the share of the effect of hyperparameters that changes with progress.
        seed: D2, also the variance of a report's noise.
        features: B2, the variance of the effects of the features.
        joint: b, the variance of the kernel over all coordinates at once.
        time: the length scale of kt.
        linear: the variance of the linear part.
        shared: M2, the variance of the learning curve that all trials share.
    """

    lengths: tuple[float, ...]
    moving: float
    seed: float
    features: float = 0.0
    joint: float = 0.5
    time: float = 0.5
    linear: float = 1.0
    shared: float = 10.0


@dataclass(frozen=True, slots=True)
class Points:
    """Points at which trials are observed or predicted, one row each.

    Args:
        x: hyperparameters, shape (n, coordinates).
        t: progress in (0, 1], shape (n,).
        trial: trial numbers, shape (n,); -1 for a trial that does not exist yet.
        phi: features, shape (n, features); zeros if they are unknown.
        own: o, the standard deviation of what is the trial's own, shape (n,); 0 for a trial that does not exist yet.
    """

    x: Floats
    t: Floats
    trial: Ints
    phi: Floats
    own: Floats

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, chosen: Ints) -> Points:
        """These rows."""
        return Points(self.x[chosen], self.t[chosen], self.trial[chosen], self.phi[chosen], self.own[chosen])

    def with_rows(self, other: Points) -> Points:
        """The rows of both."""
        return Points(
            np.vstack([self.x, other.x]),
            np.concatenate([self.t, other.t]),
            np.concatenate([self.trial, other.trial]),
            np.vstack([self.phi, other.phi]),
            np.concatenate([self.own, other.own]),
        )


def warp(t: Floats) -> Floats:
    """Progress on the scale of kt, on which early reports are further apart than late ones."""
    return 0.5 * (t + np.log1p(23.0 * t) / math.log(24.0))


def amplitude(t: Floats) -> Floats:
    """a(t): the size of the differences between hyperparameters, as a share of that at the end.

    It is smaller early on, since all trials start from the same base model.
    """
    share: Floats = START + (1.0 - START) * warp(t)
    return share


def matern52(distance: Floats) -> Floats:
    """k52 at a distance in length scales (Rasmussen and Williams, 2006, eq. 4.17)."""
    scaled = math.sqrt(5.0) * distance
    value: Floats = np.exp(-scaled)
    value *= 1.0 + scaled * (1.0 + scaled / 3.0)
    return value


@dataclass(frozen=True)
class Pairs:
    """What the covariance of n points with m points needs of them, whatever the kernel's parameters.

    Args:
        distance: absolute differences along each coordinate, shape (coordinates, n, m).
        dot: products of the centred hyperparameters, shape (n, m).
        warped: differences of warped progress.
        grown: a(t) a(t').
        fade: (1.1 - t)(1.1 - t').
        same: 1 for two points of one trial, else 0.
        own: o o' for two points of one trial, else 0.
        phi: t² t'² φ·φ'.
    """

    distance: Floats
    dot: Floats
    warped: Floats
    grown: Floats
    fade: Floats
    same: Floats
    own: Floats
    phi: Floats


def pairs(a: Points, b: Points) -> Pairs:
    """The pairs of two sets of points."""
    # Mostly, all of b are ends: then what depends on progress alone is one column.
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


def kx(distance: Floats, dot: Floats, parameters: KernelParameters) -> Floats:
    """The kernel over hyperparameters, shape (n, m), from the fields of `Pairs`."""
    width = max(1, len(distance))
    scaled = distance / np.array(parameters.lengths)[:, None, None]
    joint = np.sqrt(np.einsum("kij,kij->ij", scaled, scaled))
    value: Floats = matern52(scaled).sum(axis=0)
    value += parameters.linear * dot
    value /= width
    value += parameters.joint * matern52(joint)
    return value


def covariance(both: Pairs, p: KernelParameters) -> Floats:
    """The covariance of y without the noise of a report, shape (n, m)."""
    time: Floats = np.exp(-0.5 * (both.warped / p.time) ** 2)
    value: Floats = kx(both.distance, both.dot, p)
    value *= both.grown * (1.0 - p.moving + p.moving * time)
    value += p.shared * time
    value += both.same * (p.seed * both.fade * time)
    value += both.own
    if p.features:
        value += p.features * both.phi
    return value


def variance(a: Points, p: KernelParameters) -> Floats:
    """The diagonal of the covariance of points with themselves, shape (n,)."""
    width = max(1, a.x.shape[1])
    value: Floats = p.linear * ((a.x - 0.5) ** 2).sum(axis=1) / width + (a.x.shape[1] > 0) + p.joint
    value = value * amplitude(a.t) ** 2 + p.shared + np.where(a.trial < 0, 0.0, p.seed * (FLOOR + 1.0 - a.t) ** 2)
    value += a.own**2 + p.features * (a.phi**2).sum(axis=1) * a.t**4
    return value


def noise(t: Floats, p: KernelParameters) -> Floats:
    """The variance of a report's noise, with a little more for numerical stability, shape (n,)."""
    return p.seed * (FLOOR + 1.0 - t) ** 2 + 1e-6
