"""Samplers against densities that are known: moments by integration, invariance from exact draws, biases as derived."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
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
SOME = ("product", "mixture", "not, by contrast")
CASES = [(HMC, name) for name in TARGETS] + [(one, name) for one in (MALA, CHEES, Underdamped(0.1)) for name in SOME]


@pytest.mark.full
@pytest.mark.parametrize(
    ("sampler", "name"), CASES, ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
)
def test_moments_are_those_of_the_integral(sampler, name):
    """Chains are independent, so standard errors are exact; 4 of them. The bias of `underdamped` is far below one at this step."""
    n = 4000
    energy = TARGETS[name]
    x = energy.sample((n, 2), sampler=sampler, steps=40 if sampler in (HMC, CHEES) else 200, seed=1, dtype=F64)
    mean, covariance = integrated(energy)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


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
