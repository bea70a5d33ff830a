"""Log likelihoods by the probability flow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.options import check_flag, check_integer
from composable_energy.sampling import Noise, twin
from composable_energy_diffusion.samplers import ODE
from composable_energy_mcmc.level_gradient import level_gradient

_STEP = {torch.float64: 1e-4, torch.float32: 3e-3}  # of finite differences, in units of the noise level


@dataclass(frozen=True)
class LogLikelihood:
    """Log densities of points, in nats.

    Args:
        values: The log densities, with shape $(B,)$.
        standard_error: Its standard error by the random directions, with shape $(B,)$; 0 if the divergence is exact, NaN for one direction.
        evaluations: How many gradients were evaluated for each point.
    """

    values: Tensor
    standard_error: Tensor
    evaluations: int


def log_likelihood(
    energy: Energy,
    x: Tensor,
    *,
    levels: int = 40,
    probes: int = 4,
    exact: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    seed: int = 0,
) -> LogLikelihood:
    r"""Returns the log density of points under the probability flow, in nats.

    The flow $dx / d\sigma = \sigma \nabla E(x, \sigma)$ carries a point up to the highest level, where the density is the Gaussian from
    which the samplers start, and

    $$\log p(x) = \log p_\text{max}(x_\text{max})
    + \int_{\sigma_\text{min}}^{\sigma_\text{max}} \sigma\, \nabla \cdot \nabla E(x, \sigma)\; d\sigma .$$

    The divergence is the mean of $v \cdot (\nabla E(x + h v) - \nabla E(x - h v)) / 2h$ over random signs $v$ (Hutchinson), or exact, over
    the coordinates. It needs no second derivative of a network. For one diffusion model this is its log likelihood (of points with
    noise of the lowest level); for an expression it is that of the draws of the sampler `ode`. Points in float64 are more exact.

    Args:
        energy: An energy with the condition `sigma`; it need not have a value.
        levels: The number of noise levels, with equally spaced logarithms; a step between two takes four evaluations of each gradient.
        probes: The number of random directions.
        exact: Whether to take the coordinates as directions; for points of few coordinates.

    Raises:
        ExpressionError: The energy does not depend on noise levels, or on another condition that is not bound.

    References:
        Score-based generative modeling through stochastic differential equations (Song et al., 2021), https://arxiv.org/abs/2011.13456

    Example:
        >>> import torch
        >>> from composable_energy.testing import Gaussian
        >>> found = log_likelihood(Gaussian(torch.zeros(2).double()), torch.zeros(1, 2).double(), exact=True)
        >>> round(found.values.item(), 2)
        -1.84
    """
    probes, exact = check_integer("probes", probes), check_flag("exact", exact)
    path = ODE(check_integer("levels", levels, 2), sigma_max, sigma_min)
    if not len(x):
        return LogLikelihood(x.new_zeros(0), x.new_zeros(0), 0)
    with torch.no_grad():
        model, point = twin(energy), x.detach()
        noise = Noise(seed, range(len(x))).child("directions")
        path, _ = path.tune(model, torch.zeros_like(point), noise.child("start"))
        if exact:
            directions = list(torch.eye(point[0].numel()).to(x).view(-1, 1, *x.shape[1:]).expand(-1, *x.shape))
        else:
            directions = [torch.where(noise.normal(point, i) < 0, -1.0, 1.0).to(x) for i in range(probes)]
        last, logs = _flow(model, point, directions, path.sigma_range, levels)
        variance = torch.as_tensor(path.scale if path.scale is not None else 1.0).to(point).square().expand_as(point[0])
        gradient = level_gradient(model, last, path.sigma_range[1]).grad  # (x - mean) / variance
        top = -(variance * gradient.square()).flatten(1).sum(1) / 2 - (2 * math.pi * variance).log().sum() / 2
    evaluations = 4 * (levels - 1) * (1 + 2 * len(logs)) + 1
    if exact:
        return LogLikelihood(top + logs.sum(0), torch.zeros_like(top), evaluations)
    error = logs.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(top, torch.nan)
    return LogLikelihood(top + logs.mean(0), error, evaluations)


def _flow(energy: Energy, x: Tensor, directions: Sequence[Tensor], ends: tuple[float, float], levels: int) -> tuple[Tensor, Tensor]:
    r"""Returns points at the highest level and integrals of divergences by direction, $(k, B)$, by Runge-Kutta (order 4, $\log \sigma$)."""
    logs, h = x.new_zeros(len(directions), len(x)), math.log(ends[1] / ends[0]) / (levels - 1)
    for i in range(levels - 1):
        first, middle, last = (ends[0] * math.exp(h * (i + part)) for part in (0.0, 0.5, 1.0))
        k1, d1 = _slopes(energy, x, first, directions)
        k2, d2 = _slopes(energy, x + h / 2 * k1, middle, directions)
        k3, d3 = _slopes(energy, x + h / 2 * k2, middle, directions)
        k4, d4 = _slopes(energy, x + h * k3, last, directions)
        x = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        logs += h / 6 * (d1 + 2 * (d2 + d3) + d4)
    return x, logs


def _slopes(energy: Energy, x: Tensor, sigma: float, directions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Returns $\sigma^2 \nabla E$, and its derivative along each direction, with shape $(k, B)$."""
    h = sigma * _STEP.get(x.dtype, 0.03)
    found = []
    for v in directions:
        above, below = (level_gradient(energy, torch.add(x, v, alpha=sign * h), sigma).grad for sign in (1, -1))
        found.append((v * (above - below)).flatten(1).sum(1) * (sigma**2 / (2 * h)))
    return sigma**2 * level_gradient(energy, x, sigma).grad, torch.stack(found)
