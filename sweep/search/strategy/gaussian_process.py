"""A Gaussian process over hyperparameters and training progress, which predicts where each trial would end.

The model of y, the compressed log loss (see `observations`), of trial i with hyperparameters x at progress t in (0, 1]:

    y_i(t) = c + m(t) + f(x, t) + d_i(t) + t² φ_i·β + noise

    symbol          in the code              what it is
    --------------  -----------------------  ------------------------------------------------------------------------
    x               Points.x                 hyperparameters, encoded into coordinates of about [0, 1]
    t               Points.t                 progress: milestone / milestones of a whole trial
    i               Points.trial             number of the trial
    φ               Points.phi               features of the trial: gradient norm and slope (see `trial_data`)
    o               Points.own               standard deviation of what is the trial's own for good
    y               GaussianProcess.y        compressed log losses, shape (n,)
    c               GaussianProcess.centre   constant, with a flat prior
    m, M2           parameters.shared        the learning curve that all trials share; cov m = M2 kt(t, t')
    f               kx, covariance           effect of the hyperparameters; a(t) a(t') kx(x, x') (1 - w + w kt(t, t'))
    a(t)            amplitude                size of that effect, which grows as training goes on
    w               parameters.moving        share of that effect that changes with progress
    d, D2           parameters.seed          effect of a trial's seed; [i = i'] (D2 (1.1 - t)(1.1 - t') kt + o²)
    β, B2           parameters.features      effects of the features; cov β = B2 I
    kx              kernel.kx                linear + sum over coordinates of k52 along it + b k52 over all of them
    b               parameters.joint         weight of the k52 over all coordinates at once
    k52             kernel.matern52          Matérn kernel of smoothness 5/2
    kt              covariance               squared exponential in the mean of t and log t
    K               chol                     covariance of y; its lower Cholesky factor is kept
    σ²              scale                    scale of all covariances

Sources: k52 is eq. 4.17, and the flat prior on c is section 2.7, of Rasmussen and Williams, Gaussian Processes for
Machine Learning, 2006. Pausing trials by a joint process over hyperparameters and time is Swersky, Snoek and Adams,
Freeze-Thaw Bayesian Optimization, 2014. The additive part says that the best learning rate depends little on the rank
until the data say otherwise.

A metric that is a mean over few rows has a known variance beside σ² K: it enters the diagonal in units of y.

Invariants: pure and deterministic. A trial far worse than the best at its milestone has a large o: how bad it is says
little about where the optimum is, and must not bend the surface there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs

from sweep.search.strategy.kernel import Floats, KernelParameters, Pairs, Points, covariance, noise, pairs, variance

# Scales that are tried where variances are known, as shares of the scale that explains everything without them.
SCALES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


@dataclass(frozen=True)
class GaussianProcess:
    """The process, conditioned on observations.

    Args:
        seen: the points that are observed, n of them.
        y: compressed log losses at `seen`, shape (n,).
        centre: c, its generalised least squares estimate.
        scale: σ², which maximises the likelihood.
        chol: lower Cholesky factor of K, shape (n, n).
        alpha: K⁻¹ (y - c), shape (n,).
        ones: K⁻¹ 1, shape (n,), for the flat prior on c.
        evidence: the log likelihood, up to a constant.
        known: known variances of y beside the noise of a report, shape (n,); None: none is known.
    """

    seen: Points
    y: Floats
    parameters: KernelParameters
    centre: float
    scale: float
    chol: Floats
    alpha: Floats
    ones: Floats
    evidence: float
    known: Floats | None = None

    def predict(self, at: Points, against: Points | None = None) -> tuple[Floats, Floats]:
        """Mean and standard deviation of y without the noise of a report, each of shape (len(at),).

        Args:
            against: one row. The deviation is then that of the difference to y there: what is unknown of the curve
                that all trials share does not make it more likely that one trial ends better than another.
        """
        every = at if against is None else at.with_rows(against)
        cross = covariance(pairs(self.seen, every), self.parameters)
        mean: Floats = self.centre + cross.T @ self.alpha
        half, _ = dtrtrs(self.chol, cross, lower=1)
        rest = (1.0 - cross.T @ self.ones) / math.sqrt(self.ones.sum())
        var = variance(every, self.parameters) - np.einsum("ij,ij->j", half, half) + rest**2
        if against is not None:
            both = covariance(pairs(at, against), self.parameters)[:, 0] - half[:, :-1].T @ half[:, -1]
            both += rest[:-1] * rest[-1]
            mean, var = mean[:-1], var[:-1] + var[-1] - 2.0 * both
        return mean, np.sqrt(self.scale * np.maximum(var, 1e-10))


def fit(
    seen: Points, y: Floats, parameters: KernelParameters, among: Pairs | None = None, known: Floats | None = None
) -> GaussianProcess:
    """The process with these parameters, with the scale that maximises the likelihood; c is integrated out.

    Args:
        among: the pairs of `seen` with itself, if they are computed already.
        known: known variances of y beside the noise of a report, shape (n,). They are in units of y, and all others in
            units of the scale, which is then searched for.

    Raises:
        LinAlgError: the covariance is not positive definite.
    """
    cov = covariance(among or pairs(seen, seen), parameters)
    cov[np.diag_indices(len(y))] += noise(seen.t, parameters)
    without = _solved(seen, y, parameters, cov)
    if known is None:
        return without
    tried = [without.scale * share for share in SCALES]
    return max((_with_known(seen, y, parameters, cov, known, scale) for scale in tried), key=lambda one: one.evidence)


def _with_known(
    seen: Points, y: Floats, parameters: KernelParameters, cov: Floats, known: Floats, scale: float
) -> GaussianProcess:
    """The process with this scale and known variances.

    Args:
        cov: the covariance of y in units of the scale, without the known variances.
    """
    noisy = cov.copy()
    noisy[np.diag_indices(len(y))] += known / scale
    solved, n = _solved(seen, y, parameters, noisy), len(y)
    misfit = float((y - solved.centre) @ solved.alpha) + 0.04
    at_its_own = 0.5 * n * math.log(solved.scale)
    evidence = solved.evidence + at_its_own - 0.5 * (n + 2.0) * math.log(scale) - 0.5 * misfit / scale
    return replace(solved, scale=scale, evidence=evidence, known=known)


def _solved(seen: Points, y: Floats, parameters: KernelParameters, cov: Floats) -> GaussianProcess:
    """The process whose observations have this covariance, in units of the scale, which maximises the likelihood."""
    n = len(y)
    chol, failed = dpotrf(cov, lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError(f"the covariance of {n} reports is not positive definite")
    solved, _ = dpotrs(chol, np.column_stack([np.ones(n), y]), lower=1)
    ones, weighed = solved.T
    centre = float(ones @ y / ones.sum())
    alpha = weighed - centre * ones
    # A weak inverse-gamma prior keeps the scale from collapsing if there are only two reports.
    scale = (float((y - centre) @ alpha) + 0.04) / (n + 2.0)
    evidence = -0.5 * n * math.log(scale) - float(np.log(np.diag(chol)).sum()) - 0.5 * math.log(ones.sum())
    return GaussianProcess(seen, y, parameters, centre, scale, chol, alpha, ones, evidence)


def condition_on_means(model: GaussianProcess, at: Points) -> GaussianProcess:
    """The process after observing its own means at these points: what runs already need not be tried again.

    This is the kriging believer of Ginsbourger, Le Riche and Carraro, Kriging is well-suited to parallelize
    optimization, 2010.
    """
    mean, _ = model.predict(at)
    seen, y = model.seen.with_rows(at), np.concatenate([model.y, mean])
    if model.known is None:
        return replace(fit(seen, y, model.parameters), scale=model.scale)
    cov = covariance(pairs(seen, seen), model.parameters)
    cov[np.diag_indices(len(y))] += noise(seen.t, model.parameters)
    known = np.concatenate([model.known, np.zeros(len(at))])
    return _with_known(seen, y, model.parameters, cov, known, model.scale)
