"""Descent: it finds modes, its energies never rise, and chains that are there cost nothing."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from composable_energy.errors import SamplingDiverged
from composable_energy_mcmc import Descent

F64 = torch.float64


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's function, with its one minimum at (1, 1)."""
    return (1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_narrow_valley_takes_tens_of_steps(scale):
    """Steps that are all short enough for the walls of condition number 100 take more than 1,000."""
    widths = torch.logspace(-1, 1, 100, dtype=F64) * scale**2
    energy = ce.as_energy(lambda x: (x.square() / widths).sum(1) / 2)
    x, trace = energy.sample(
        (64, 100), sampler=Descent(tolerance=0), steps=120, seed=0, init=torch.randn(64, 100, dtype=F64) * scale, trace=True
    )
    assert energy(x).max() < 1e-6 * trace.energies[0].min()


@pytest.mark.slow
def test_energies_never_rise_and_the_minimum_is_found():
    x, trace = ce.as_energy(valley).sample((50, 2), sampler="descent", seed=0, dtype=F64, trace=True)
    assert (trace.energies.diff(dim=0) <= 0).all()
    torch.testing.assert_close(x, torch.ones(50, 2, dtype=F64), rtol=0, atol=1e-5)


def test_every_chain_of_an_expression_ends_in_a_mode():
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=F64)
    two = ce.as_energy(MixtureSameFamily(Categorical(torch.ones(2, dtype=F64)), MultivariateNormal(means, 0.25 * torch.eye(2, dtype=F64))))
    bowl = ce.as_energy(MultivariateNormal(torch.tensor([0.0, 3.0], dtype=F64), torch.eye(2, dtype=F64)))
    init = 3 * torch.randn(200, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = (two & bowl).sample((200, 2), sampler="descent", init=init)
    exact = (4 * means + torch.tensor([0.0, 3.0])) / 5  # means weighted by precisions; the other mode is e^-70 away
    assert torch.cdist(x, exact).amin(1).max() < 1e-5
    assert 50 < (x[:, 0] < 0).sum() < 150


def test_a_wall_is_stepped_back_from_and_a_broken_energy_is_reported():
    """Gamma's density rises to its mode and is zero below 0; the first step of this chain would leave the support."""
    gamma = ce.as_energy(torch.distributions.Gamma(torch.full((1,), 3.0, dtype=F64), 1.0))
    x = gamma.sample((1, 1), sampler=Descent(step_size=50.0), init=torch.full((1, 1), 9.0, dtype=F64))
    torch.testing.assert_close(x, torch.full((1, 1), 2.0, dtype=F64), rtol=0, atol=1e-5)
    broken = ce.as_energy(lambda x: torch.where(x.norm(dim=1) < 0.5, torch.nan, 1.0) * x.square().sum(1) / 2)
    with pytest.raises(SamplingDiverged):
        broken.sample((50, 2), sampler="descent", seed=0, init=torch.ones(50, 2))
