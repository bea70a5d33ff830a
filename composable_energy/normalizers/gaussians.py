"""The normalised Gaussian where a path to a density begins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from composable_energy.errors import OptionError
from composable_energy.lift import as_energy

__all__ = ["Gaussian", "fitted", "of_distribution"]

_WIDER = 1.2  # a base that is narrower than the density misses its tails, a wider one costs a few levels
_ROWS_PER_AXIS = 10
_MOST_AXES = 256


@dataclass(frozen=True)
class Gaussian:
    r"""The law of $\mu + S z$ with standard normal $z$.

    Args:
        mean: $\mu$, with the shape of one point.
        scale: The diagonal of $S$, with the shape of one point; or all of it, a lower triangle over the flattened axes.
    """

    mean: Tensor
    scale: Tensor

    @property
    def log_volume(self) -> Tensor:
        r"""$\log |\det S|$."""
        return (self.scale if self._diagonal else self.scale.diagonal()).abs().log().sum(dtype=torch.float64)

    def points(self, z: Tensor) -> Tensor:
        """Returns the points of standard ones, with shape $(B, *)$."""
        return self.mean + (z * self.scale if self._diagonal else (z.reshape(len(z), -1) @ self.scale.T).view_as(z))

    def standard(self, x: Tensor) -> Tensor:
        """Returns the standard points of points with shape $(B, *)$."""
        centred = x - self.mean
        if self._diagonal:
            return centred / self.scale
        return torch.linalg.solve_triangular(self.scale, centred.reshape(len(x), -1).T, upper=False).T.reshape(x.shape)

    def to(self, like: Tensor) -> Gaussian:
        """Returns it with the dtype and device of some points."""
        return Gaussian(self.mean.detach().to(like), self.scale.detach().to(like))

    @property
    def _diagonal(self) -> bool:
        return self.scale.shape == self.mean.shape


def of_distribution(distribution: object) -> Gaussian:
    """Returns the Gaussian that a torch distribution is, a point with its batch shape followed by its event shape.

    Raises:
        OptionError: It is another distribution, or a batch of several matrices.
    """
    inner = distribution
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if isinstance(inner, Normal):
        return Gaussian(inner.loc, inner.scale)
    if isinstance(inner, MultivariateNormal) and not inner.batch_shape:
        return Gaussian(inner.loc, inner.scale_tril)
    got = as_energy(distribution) if isinstance(distribution, Distribution) else type(distribution).__name__
    raise OptionError(f"base is a Normal or one MultivariateNormal of torch.distributions, got {got}.")


def fitted(points: Tensor) -> Gaussian:
    """Returns a Gaussian somewhat wider than some points.

    It has the covariance of the points where there are enough of them, else their variances.

    Args:
        points: With shape $(B, *)$.

    Raises:
        OptionError: The points are too few, or do not vary, or are not finite.
    """
    rows = points.reshape(len(points), -1).double()
    if len(rows) < _ROWS_PER_AXIS:
        raise OptionError(f"A base is fitted to {_ROWS_PER_AXIS} points at least, got {len(rows)}; give `base` instead.")
    mean, axes = rows.mean(0), rows.shape[1]
    spread = rows.std(0)
    if not (spread.isfinite() & (spread > 0)).all():
        raise OptionError("The points that the base is fitted to are not finite or all the same in a coordinate; give `base` instead.")
    scale = spread.view(points.shape[1:])
    if 1 < axes <= _MOST_AXES and len(rows) >= _ROWS_PER_AXIS * axes:
        triangle, failed = torch.linalg.cholesky_ex(torch.cov(rows.T))
        scale = scale if failed else triangle
    return Gaussian(mean.view(points.shape[1:]), _WIDER * scale).to(points)


def log_density(z: Tensor) -> Tensor:
    """Returns the standard normal log densities of points, with shape $(B,)$."""
    flat = z.reshape(len(z), -1)
    return -flat.square().sum(1) / 2 - flat.shape[1] * math.log(2 * math.pi) / 2
