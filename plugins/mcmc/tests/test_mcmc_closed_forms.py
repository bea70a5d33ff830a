"""Samplers against densities that are known: biases as derived, and modes with their weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy_mcmc import Annealed, Langevin, Underdamped

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


def gaussian(mean, covariance):
    return ce.as_energy(MultivariateNormal(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64)))


@pytest.mark.slow
@pytest.mark.parametrize(("step_size", "temperature", "variance"), [(0.2, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 0.5, 2.0)])
def test_langevin_is_biased_as_derived(step_size, temperature, variance):
    """A wrong factor of two is tens of errors away, a lucky seed is not 4."""
    n = 20_000
    energy = gaussian([0.0, 0.0], [[variance, 0.0], [0.0, variance]])
    x = energy.sample((n, 2), sampler=Langevin(step_size, temperature), steps=80, seed=2, dtype=F64)
    expected = temperature * variance / (1 - step_size / (4 * variance))
    assert abs(x.square().mean() - expected) < 4 * expected / math.sqrt(n)


LAWS = [(0.5, 1.0, 1.0, 1.0), (1.5, 1.0, 1.0, 1.0), (1.0, 0.5, 0.5, 2.0), (0.9, 2.0, 1.0, 0.25), (0.5, 30.0, 1.0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("step_size", "friction", "temperature", "variance"), LAWS)
def test_underdamped_is_biased_as_derived(step_size, friction, temperature, variance):
    """Points are unbiased, the squares of momenta are off by the square of the step; points and momenta are independent."""
    n, sampler = 20_000, Underdamped(step_size, friction, temperature)
    energy = gaussian([0.0, 0.0], [[variance, 0.0], [0.0, variance]])
    start = math.sqrt(temperature * variance) * Noise(1, range(n)).normal(torch.zeros(n, 2, dtype=F64))
    x, trace = energy.sample((n, 2), sampler=sampler, steps=60, seed=2, init=start, trace=True)
    momentum = trace.state.momentum
    of_x, of_momentum = temperature * variance, temperature * (1 - step_size**2 / (4 * variance))
    assert abs(x.square().mean() / of_x - 1) * math.sqrt(n) < 4
    assert abs(momentum.square().mean() / of_momentum - 1) * math.sqrt(n) < 4
    assert abs((x * momentum).mean()) / math.sqrt(of_x * of_momentum) * math.sqrt(2 * n) < 4


@pytest.mark.slow
def test_underdamped_draws_a_mixture():
    """The bias of this step is far below a standard error."""
    n, parts = 4000, [gaussian([mean], [[1.0]]) for mean in (-1.0, 1.0)]
    x = ce.any_of(*parts, weights=[0.3, 0.7]).sample((n, 1), sampler=Underdamped(0.1), steps=200, seed=1, dtype=F64)
    assert abs(x.mean() - 0.4) < 4 * math.sqrt((2 - 0.4**2) / n)
    assert abs(x.square().mean() - 2) < 4 * x.square().std() / math.sqrt(n)


class NoisyMixture(ce.Energy):
    r"""A mixture of narrow Gaussians with noise of level $\sigma$ added: what a noise-conditional network learns."""

    def __init__(self):
        super().__init__()
        self.event_shape = torch.Size([2])
        self.register_buffer("means", torch.tensor([[-1.2, -0.4], [1.0, 0.8]]))
        self.register_buffer("weights", torch.tensor([0.3, 0.7]))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = (0.01 + sigma.square())[:, None]
        squares = (x[:, None] - self.get_buffer("means")).square().sum(2)
        return -torch.logsumexp(-squares / (2 * variance) + self.get_buffer("weights").log() - variance.log(), 1)


def test_annealed_finds_modes_with_their_weights():
    """Plain Langevin at the lowest level stays in the mode that it meets first."""
    n = 4000
    x = NoisyMixture().sample(n, seed=0, sampler=Annealed())
    left = (x[:, 0] < 0).float().mean()
    assert abs(left - 0.3) < 4 * math.sqrt(0.21 / n) + 0.03  # as many levels as by default leave a bias of some hundredths
    inside = (x[:, None] - NoisyMixture().get_buffer("means")).norm(dim=2).amin(1)
    assert inside.max() < 0.6
    assert abs(inside.square().mean() - 0.02) < 0.006


def test_annealed_without_noise_levels_lowers_the_temperature():
    n = 4000
    energy = gaussian([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    x, trace = energy.sample((n, 2), sampler=Annealed(delta=0.05), seed=0, trace=True, dtype=F64)
    assert trace.scalars["temperature"][0] == 17 and trace.scalars["temperature"][-1] == 1
    assert (x.mean(0) - torch.tensor([1.0, 0.0])).abs().max() < 0.1
    assert (x.var(0) - 1).abs().max() < 0.1
