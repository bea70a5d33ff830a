"""Targets whose mean and variance are known, for the benchmark of closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from composable_energy.testing import Banana

F64 = torch.float64


@dataclass(frozen=True)
class Target:
    """An energy with the mean and the variance of its coordinates."""

    energy: ce.Energy
    mean: Tensor  # means of the coordinates, or of the first of them
    variance: Tensor  # their variances
    start: Callable[..., Tensor] | None = None  # draws points inside the support from a shape; `sample` chooses them if None
    size: int = 0  # number of coordinates, if more than `mean` has
    required: bool = True  # whether samplers have to pass


def gaussian(size: int, condition: float = 1000.0, rotated: bool = True) -> Target:
    """A Gaussian with variances around 1 along random axes, and a mean at which no chain starts."""
    axes = torch.eye(size, dtype=F64)
    if rotated:
        axes = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(size)))[0]
    variances = torch.logspace(-math.log10(condition) / 2, math.log10(condition) / 2, size, dtype=F64)
    precision, mean = (axes / variances) @ axes.T, torch.full((size,), 0.5, dtype=F64)
    energy = ce.as_energy(lambda x: (((x - mean) @ precision) * (x - mean)).sum(1) / 2)
    return Target(energy, mean, ((axes * variances) @ axes.T).diagonal())


def mixture() -> Target:
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.5, 0.0], [1.0, 0.8]], dtype=F64)
    covariances = torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.8, -0.3], [-0.3, 0.3]]], dtype=F64)
    energy = ce.as_energy(MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances)))
    mean = weights @ means
    return Target(energy, mean, weights @ (covariances.diagonal(dim1=1, dim2=2) + means.square()) - mean.square())


def half_line() -> Target:
    r"""$E = u^{1.5} - \tfrac12 \log u$ with $u = x + \tfrac12$, which is not a number for $u < 0$; there the density is 0."""

    def energy(x: Tensor) -> Tensor:
        u = x[:, 0] + 0.5
        return torch.where(u > 0, u**1.5 - u.log() / 2, torch.inf)

    first, second = math.gamma(5 / 3), math.gamma(7 / 3)
    mean, variance = torch.tensor([first - 0.5], dtype=F64), torch.tensor([second - first**2], dtype=F64)
    return Target(ce.as_energy(energy), mean, variance, lambda shape: torch.rand(shape, dtype=F64))


def expression() -> Target:
    """`a | b & ~c` of Gaussians; the negation is relative to `a | b`."""

    def normal(mean: list[float], covariance: list[list[float]]) -> ce.Energy:
        return ce.as_energy(MultivariateNormal(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64)))

    parts = normal([-1.0, 0.0], [[1.0, 0.5], [0.5, 0.8]]), 2 * normal([1.5, 0.5], [[1.2, 0.0], [0.0, 1.0]])
    either = ce.any_of(*parts, weights=[1, 1])  # the shares are as they are
    energy = either & ~normal([0.0, 0.5], [[0.6, 0.1], [0.1, 0.5]]).relative_to(either)
    axis = torch.linspace(-10, 10, 1001, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = torch.softmax(-energy(points), 0)
    return Target(energy, weight @ points, weight @ (points - weight @ points).square())


def banana() -> Target:
    return Target(Banana(), torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([1.0, 2.25], dtype=F64))


def funnel() -> Target:
    r"""$v \sim N(0, 9)$ and nine coordinates of variance $e^v$; only $v$ is compared, because the others have heavy tails."""
    energy = ce.as_energy(lambda x: x[:, 0].square() / 18 + 4.5 * x[:, 0] + (x[:, 1:].square().sum(1) * (-x[:, 0]).exp()) / 2)
    return Target(energy, torch.zeros(1, dtype=F64), torch.full((1,), 9.0, dtype=F64), size=10, required=False)


TARGETS: dict[str, Callable[[], Target]] = {
    "gaussian, 2": lambda: gaussian(2),
    "gaussian, 10": lambda: gaussian(10),
    "gaussian, 100": lambda: gaussian(100),
    "mixture": mixture,
    "banana": banana,
    "half-line": half_line,
    "a | b & ~c": expression,
    "funnel": funnel,
}
