"""The closed case: a Gaussian prior and a logistic attribute along one direction, with moments by quadrature."""

import math

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_latent import attribute, latent


def direction(d: int) -> Tensor:
    a = torch.randn(d, generator=torch.Generator().manual_seed(d))
    return a / a.norm()


def logistic(d: int, slope: float, offset: float, mean: float = 0.0, scale: float = 1.0) -> tuple[ce.Energy, Tensor]:
    """Returns an event whose log odds are linear, in the latent space of a linear generator, and its direction."""
    a = direction(d)
    base = latent(torch.nn.Linear(d, 3), torch.distributions.Normal(torch.full((d,), mean), scale))
    return attribute(base, lambda z: slope * (z @ a) + offset, "A"), a


def moments(slope: float, offset: float, mean: float = 0.0, scale: float = 1.0) -> tuple[float, float, float]:
    """Returns mean, variance and fourth central moment of the coordinate along the direction."""
    u = torch.linspace(-10, 10, 20001, dtype=torch.float64) * scale + mean
    weights = torch.exp(-((u - mean) ** 2) / (2 * scale**2)) * torch.sigmoid(slope * u + offset)
    weights /= weights.sum()
    centre = (weights * u).sum()
    return centre.item(), (weights * (u - centre) ** 2).sum().item(), (weights * (u - centre) ** 4).sum().item()


def errors(along: Tensor, truth: tuple[float, float, float]) -> tuple[float, float]:
    """Returns how many standard errors the mean and the variance of draws are off."""
    mean, variance, fourth = truth
    n = len(along)
    of_mean = abs(along.mean().item() - mean) / math.sqrt(variance / n)
    return of_mean, abs(along.var().item() - variance) / math.sqrt((fourth - variance**2) / n)
