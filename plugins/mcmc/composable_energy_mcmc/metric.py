"""Metrics: linear maps that whiten points, and their estimate from draws."""

import math

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy_mcmc.batch import flatten_points, map_points

_DENSE_AXES = 256  # above, products with a matrix cost more than most energies
_DRAWS_PER_AXIS = 10


class Metric:
    r"""A linear map $S$ from whitened points to points, $x = S y$: the identity, diagonal, or a triangular matrix.

    The scale is a tensor of standard deviations with the shape of a point, or the Cholesky factor of a covariance of flattened points; None
    is the identity. The shape of a point, `event`, is only needed beside a matrix.

    Example:
        >>> Metric(torch.tensor([1.0, 2.0]))
        Metric('diagonal', (2,))
    """

    def __init__(self, scale: Tensor | None = None, event: torch.Size | None = None) -> None:
        self.scale = scale
        self.event = scale.shape if event is None and scale is not None else event
        self.kind = "identity" if scale is None else "diagonal" if scale.shape == self.event else "dense"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return () if self.scale is None else (self.scale,)

    def unwhiten(self, y: Tensor) -> Tensor:
        """Returns $S y$."""
        if self.scale is None:
            return y
        scale = self.scale.to(y)
        return y * scale if self.kind == "diagonal" else map_points(lambda rows: rows @ scale.T, y)

    def whiten_gradient(self, grad: Tensor) -> Tensor:
        r"""Returns $S^\top \nabla E$, the gradient with respect to whitened points."""
        if self.scale is None:
            return grad
        scale = self.scale.to(grad)
        return grad * scale if self.kind == "diagonal" else map_points(lambda rows: rows @ scale, grad)

    def whiten(self, x: Tensor) -> Tensor:
        r"""Returns $S^{-1} x$, in float32 at least."""
        if self.scale is None:
            return x
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = self.scale.to(x)
        if self.kind == "diagonal":
            return x / scale
        return map_points(lambda rows: torch.linalg.solve_triangular(scale, rows.T, upper=False).T, x)

    def check(self, x: Tensor) -> None:
        """Raises ShapeError if points have another shape than those that the metric was tuned for."""
        if self.event is not None and x.shape[1:] != self.event:
            raise ShapeError(f"This metric was tuned for points of shape {tuple(self.event)}, got {tuple(x.shape[1:])}; tune a new one.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Metric):
            return NotImplemented
        return self.event == other.event and same_tensor(self.scale, other.scale)

    def __hash__(self) -> int:
        return hash((self.kind, self.event))

    def __repr__(self) -> str:
        return "Metric()" if self.event is None else f"Metric({self.kind!r}, {tuple(self.event)})"


IDENTITY = Metric()


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    """Returns whether two tensors have the same numbers, dtype and device, or both are None."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


class CovarianceEstimator:
    """Estimates the variances of points from several batches, and their covariance if they have few enough coordinates."""

    def __init__(self, kind: str, like: Tensor) -> None:
        self.kind, self.event = kind, like.shape[1:]
        self.shift = flatten_points(like).double().mean(0)  # sums of squares lose digits far from zero
        size = len(self.shift)
        self.wide = kind == "dense" or (kind == "auto" and 1 < size <= _DENSE_AXES)
        self.count, self.sum = 0, torch.zeros_like(self.shift)
        self.products = self.shift.new_zeros((size, size) if self.wide else (size,))

    def add(self, x: Tensor) -> None:
        """Adds points with shape $(B, *)$."""
        x = flatten_points(x).double() - self.shift
        self.count += len(x)
        self.sum += x.sum(0)
        self.products += x.T @ x if self.wide else x.square().sum(0)

    def metric(self, dtype: torch.dtype) -> Metric:
        """Returns the metric that whitens the points.

        A dense metric pays where it removes more of the condition number than its own errors add. The correlations of $d$ independent
        coordinates, estimated from $n$ draws, have a condition number of $((1 + q) / (1 - q))^2$ with $q = \\sqrt{d / n}$ (Marchenko &
        Pastur, 1967). The number of leapfrogs grows with the root of the condition number; a dense metric has to halve it.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        if not self.count:
            return IDENTITY
        mean = self.sum / self.count
        variances = (self.products.diagonal() if self.wide else self.products) / self.count - mean.square()
        sd = torch.where(variances > 0, variances, 1.0).sqrt()
        if self.wide and (self.kind == "dense" or self.count >= _DRAWS_PER_AXIS * len(sd)):
            correlations = (self.products / self.count - torch.outer(mean, mean)) / torch.outer(sd, sd)
            correlations.fill_diagonal_(1.0)
            low, high = torch.linalg.eigvalsh(correlations)[[0, -1]].tolist()
            chance = math.sqrt(len(sd) / self.count)
            pays = chance < 1 and high * (1 - chance) ** 2 > 4 * max(low, 0.0) * (1 + chance) ** 2
            factor, failed = torch.linalg.cholesky_ex(correlations)
            if not failed and (self.kind == "dense" or pays):
                return Metric((sd[:, None] * factor).to(dtype), self.event)
        return Metric(sd.view(self.event).to(dtype))
