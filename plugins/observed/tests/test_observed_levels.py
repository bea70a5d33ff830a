"""Observations beside diffusion models, whose samplers evaluate them at denoised points: against closed forms for Gaussian data."""

import math

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy_observed import Blur, Downsample, Poisson, Quantised

CHAINS = 1000
SHAPE = (1, 4, 4)


def denoise(x, t):
    """The clean point of standard normal data."""
    return x / (1 + t.view(-1, *[1] * (x.ndim - 1)) ** 2)


def diffusion(shape=SHAPE, decoder=None):
    schedule = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    return ce.get("energy", "diffusion", model=denoise, schedule=schedule, parametrisation="x0", event_shape=shape, decoder=decoder)


def draw(energy, sampler="sde"):
    return energy.sample(CHAINS, sampler=sampler, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["sde", "ode"])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_the_posterior_of_some_pixels_is_that_of_the_closed_form(noise, sampler):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :2] = True
    x = draw(diffusion() & ce.observed(torch.full(SHAPE, 2.0), mask, noise), sampler)
    mean, deviation = 2 / (1 + noise**2), noise / math.sqrt(1 + noise**2)
    assert (x[:, mask].mean() - mean).abs() < 0.01 * mean + 4 * deviation / math.sqrt(8 * CHAINS)
    assert abs(x[:, mask].std(0).mean() / deviation - 1) < 0.04  # of the levels; see the page of diffusion models
    assert abs(x[:, ~mask].std(0).mean() - 1) < 0.04


def test_the_posterior_of_means_of_pixels_is_that_of_the_closed_form():
    x = draw(diffusion() & ce.observed(torch.ones(1, 2, 2), Downsample(2), 0.05))
    means = Downsample(2)(x)
    own, noise = 0.25, 0.05**2  # variances of a mean of four, and of the measurement
    deviation = math.sqrt(own * noise / (own + noise))
    assert (means.mean() - own / (own + noise)).abs() < 0.01 + 4 * deviation / math.sqrt(4 * CHAINS)
    assert abs(means.std(0).mean() / deviation - 1) < 0.04
    within = x.view(CHAINS, 2, 2, 2, 2) - means.view(CHAINS, 2, 1, 2, 1)
    assert abs(within.square().mean() * 4 / 3 - 1) < 0.04


@pytest.mark.full
def test_a_precise_blur_does_not_run_away():
    noise, operator, truth = 0.02, Blur(1.0), torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = draw(diffusion() & ce.observed(operator(truth)[0], operator, noise))
    assert x.square().mean() < 1.5
    assert (operator(x) - operator(truth)).square().mean().sqrt() < 3 * noise


class Triple(nn.Module):
    """A decoder whose pictures are three times as large as its codes."""

    event_shape = (2, 3)

    def forward(self, z):
        return torch.stack([3 * z, 3 * z], 1)


@pytest.mark.slow
def test_a_decoder_counts_in_what_is_not_known():
    x = draw(diffusion((3,), Triple()) & ce.observed(torch.full((2, 3), 3.0), None, 0.5))[:, 0] / 3
    precision = 1 + 18 / 0.5**2
    assert (x.mean() - 18 / 0.5**2 / precision).abs() < 0.01
    assert abs(x.std(0).mean() * math.sqrt(precision) - 1) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("y", "noise"), [(2.0, Quantised(0.1, 0.05)), (40.0, Poisson(20.0, 5.0))], ids=str)
def test_rounded_numbers_and_counts_end_near_the_posterior_of_values(y, noise):
    seen = ce.observed(torch.full((2,), y), None, noise)
    x = draw(diffusion((2,)) & seen)
    grid = torch.linspace(-2, 4, 2001)[:, None]
    values = grid.square().sum(1) / 2 + ce.observed(torch.tensor([y]), None, noise)(grid)
    p = torch.softmax(-values, 0)
    mean = (p * grid[:, 0]).sum()
    deviation = (p * (grid[:, 0] - mean).square()).sum().sqrt()
    assert abs(x.mean() - mean) < 0.2 * deviation
    assert 0.7 < x.std() / deviation < 1.3
