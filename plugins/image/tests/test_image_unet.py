"""The noise-conditional energy of pixels."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.testing.checks import assert_close


def unet(**options: object) -> ce.Energy:
    torch.manual_seed(0)
    return ce.get("energy", "energy-unet", **{"size": 8, "width": 8, "channels": 1} | options).eval()


def test_before_training_it_is_that_of_normal_pixels():
    energy, x = unet(data_std=0.3), torch.rand(4, 1, 8, 8)
    for sigma in (0.01, 0.5, 10.0):
        expected = ((x - 0.5).square() / (2 * (0.3**2 + sigma**2))).flatten(1).sum(1)
        assert_close(energy.at(sigma)(x), expected, "a normal's", network=energy)
    assert_close(energy(x), energy.at(0.01)(x), "without a level and at the lowest", network=energy)


def test_the_gradient_has_the_scale_of_noise_at_every_level():
    r"""$\sigma \nabla E$ is what predicts $\xi$; with random weights its scale may depend on the net, but not on the level by much."""
    energy = unet()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, noise = 0.5 + 0.25 * torch.randn(64, 1, 8, 8), torch.randn(64, 1, 8, 8)
    scales = []
    for sigma in (0.01, 0.1, 1.0, 10.0):
        _, gradient = energy.at(sigma).with_gradient(x + sigma * noise)
        scales.append(float((sigma * gradient).square().mean().sqrt()))
    assert max(scales) < 3 and scales[-1] == pytest.approx(1, abs=0.5)


def test_levels_may_differ_within_a_batch():
    energy = unet()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, sigma = torch.rand(3, 1, 8, 8), torch.tensor([0.05, 0.5, 5.0])
    each = torch.cat([energy.at(float(s))(x[i : i + 1]) for i, s in enumerate(sigma)])
    assert_close(energy.at(sigma)(x), each, "alone and in a batch", network=energy)


@pytest.mark.full
def test_it_learns_a_density_that_it_can_be_compared_with():
    r"""Flat images of two brightnesses: at level $\sigma$ the gradient is $(x - E[\text{image} \mid x]) / \sigma^2$, in closed form."""
    torch.manual_seed(0)
    energy = unet(size=4, width=8, levels=2, data_std=0.2, sigma_min=0.1, sigma_max=1.0)
    energy.train()
    optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3)
    for step in range(200):
        signs = torch.randint(0, 2, (64, 1, 1, 1)) * 2.0 - 1
        sigma = torch.exp(torch.empty(64).uniform_(math.log(0.1), math.log(1.0)))
        noise = torch.randn(64, 1, 4, 4)
        x = (0.5 + 0.2 * signs + sigma[:, None, None, None] * noise).requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x, sigma=sigma).sum(), x, create_graph=True)
        loss = (sigma[:, None, None, None] * gradient - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 200)
    energy.eval()
    sigma = 0.5
    signs = torch.randint(0, 2, (256, 1, 1, 1)) * 2.0 - 1
    x = 0.5 + 0.2 * signs + sigma * torch.randn(256, 1, 4, 4)
    mean = 0.5 + 0.2 * torch.tanh(0.2 * (x - 0.5).sum((1, 2, 3), keepdim=True) / sigma**2)
    exact, untrained = (x - mean) / sigma**2, (x - 0.5) / (0.2**2 + sigma**2)
    _, learnt = energy.at(sigma).with_gradient(x)
    assert float((learnt - exact).square().mean()) < 0.2 * float((untrained - exact).square().mean())


@pytest.mark.full
def test_the_recommended_sampler_runs_over_its_levels():
    energy = unet(sigma_min=0.02, sigma_max=5.0)
    draws = energy.sample(256, seed=0)
    assert draws.shape == (256, 1, 8, 8)
    assert float(draws.mean()) == pytest.approx(0.5, abs=5 * 0.25 / math.sqrt(256 * 64) + 0.02)
    assert float(draws.std()) == pytest.approx(0.25, rel=0.1)
