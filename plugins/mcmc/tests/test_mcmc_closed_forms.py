"""Samplers against densities that are known: moments by integration, invariance from exact draws, biases as derived."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from benchmarks.energies import effective
from composable_energy.sampling import Noise
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Langevin, Underdamped

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


def gaussian(mean, covariance):
    return ce.as_energy(MultivariateNormal(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64)))


A = gaussian([0.5, 0.0], [[1.0, 0.6], [0.6, 1.5]])
B = gaussian([-0.5, 1.0], [[0.8, -0.2], [-0.2, 0.4]])


class Slope(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x[:, 0] - 2 * x[:, 1]


EVENT = ce.ClassifierEnergy(Slope(), 1, base=A)
TARGETS = {
    "product": A & B,
    "mixture": ce.any_of(A, 2 * B, weights=[1, 1]),
    "mixture inside one distribution": ce.as_energy(
        MixtureSameFamily(
            Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
            MultivariateNormal(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), torch.eye(2, dtype=F64)),
        )
    ),
    "not, by level": A & ~B,
    "not, by power": A & ce.negate(B, mode="power"),
    "not, by contrast": A & ~B.relative_to(A),
    "not, by complement": A & ~EVENT,
    "not, by complement, of two": ~(EVENT & ce.ClassifierEnergy(lambda x: x[:, 0] * 4, 1, base=A)),
}


def integrated(energy: ce.Energy) -> tuple[Tensor, Tensor]:
    """Mean and covariance by a sum over a fine grid."""
    axis = torch.linspace(-9, 9, 601, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = torch.softmax(-energy(points), 0)
    mean = weight @ points
    return mean, ((points - mean) * weight[:, None]).T @ (points - mean)


CHEES = ChEES(tuning_steps=100, max_leapfrogs=16)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("sampler", [MALA, HMC, CHEES, Underdamped(0.1)], ids=["MALA", "HMC", "ChEES", "underdamped"])
def test_moments_are_those_of_the_integral(name, sampler):
    """Chains are independent, so standard errors are exact; 4 of them. The bias of `underdamped` is far below one at this step."""
    n = 4000
    energy = TARGETS[name]
    x = energy.sample((n, 2), sampler=sampler, steps=40 if sampler in (HMC, CHEES) else 200, seed=1, dtype=F64)
    mean, covariance = integrated(energy)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["hmc", "mala", CHEES], ids=["hmc", "mala", "chees"])
@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_a_flat_density_ends_at_its_borders(slope, sampler):
    n, high = 4000, 2.0
    box = ce.as_energy(torch.distributions.Uniform(torch.zeros(1, dtype=F64), high))
    energy = box & (lambda x: slope * x[:, 0]) if slope else box
    x = energy.sample((n, 1), sampler=sampler, seed=1, init=torch.ones(n, 1, dtype=F64))[:, 0]
    u = torch.linspace(0, high, 20_001, dtype=F64)
    p = torch.softmax(-slope * u, 0)
    mean = (p * u).sum()
    variance = (p * (u - mean).square()).sum()
    assert x.min() >= 0 and x.max() <= high
    assert (x.mean() - mean).abs() < 4 * (variance / n).sqrt()
    assert (x.var() - variance).abs() < 4 * (x - mean).square().std() / math.sqrt(n)


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


def z_of_underdamped(sampler, variance) -> tuple[float, float, float]:
    """How many standard errors points, momenta and their product are off the law: points unbiased, momenta by h."""
    n = 20_000
    energy = gaussian([0.0, 0.0], [[variance, 0.0], [0.0, variance]])
    start = math.sqrt(sampler.temperature * variance) * Noise(1, range(n)).normal(torch.zeros(n, 2, dtype=F64))
    x, trace = energy.sample((n, 2), sampler=sampler, steps=60, seed=2, init=start, trace=True)
    momentum = trace.state.momentum
    of_x, of_momentum = sampler.temperature * variance, sampler.temperature * (1 - sampler.step_size**2 / (4 * variance))
    squares = (x.square().mean() / of_x - 1, momentum.square().mean() / of_momentum - 1)
    product = (x * momentum).mean() / math.sqrt(of_x * of_momentum) * math.sqrt(2 * n)
    return (*(abs(float(value)) * math.sqrt(n) for value in squares), abs(float(product)))


@pytest.mark.slow
@pytest.mark.parametrize(("step_size", "friction", "temperature", "variance"), LAWS)
def test_underdamped_is_biased_as_derived(step_size, friction, temperature, variance):
    assert max(z_of_underdamped(Underdamped(step_size, friction, temperature), variance)) < 4


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


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_effective_sample_sizes_are_those_of_an_autoregression(phi):
    x = torch.zeros(4_100, 64, 1, dtype=F64)  # a standard error of .03
    noise = Noise(0, range(64))
    for step in range(1, len(x)):
        x[step] = phi * x[step - 1] + math.sqrt(1 - phi**2) * noise.at(step).normal(x[0])
    sizes, variances = effective(x[100:])
    assert abs(float(sizes) / (4_000 * 64 * (1 - phi) / (1 + phi)) - 1) < 0.1
    assert abs(float(variances) - 1) < 0.1
