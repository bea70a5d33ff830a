"""Samplers against densities that are known: moments by integration, invariance from exact draws, biases as derived."""

import math
from dataclasses import replace

import pytest
import torch
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Langevin, Underdamped
from composable_energy_mcmc.hamiltonian import leapfrog, propose, van_der_corput
from composable_energy_mcmc.metric import Metric
from composable_energy_mcmc.metropolis import choose, sum_of_each
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from composable_energy.sampling import Info, Noise, State, energy_and_gradient

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
    "mixture": A | 2 * B,
    "mixture inside one distribution": ce.as_energy(
        MixtureSameFamily(
            Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
            MultivariateNormal(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), torch.eye(2, dtype=F64)),
        )
    ),
    "not, by power": A & ~B,
    "not, by a stronger power": A & ce.negate(B, mode="power", weight=0.1),
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


@pytest.mark.parametrize("sampler", [MALA, HMC, CHEES], ids=["mala", "hmc", "chees"])
@pytest.mark.parametrize("name", TARGETS)
def test_moments_are_those_of_the_integral(name, sampler):
    """Chains are independent, so standard errors are exact; 4 of them."""
    n = 4000
    energy = TARGETS[name]
    x = energy.sample((n, 2), sampler=sampler, steps=200 if sampler is MALA else 40, seed=1, dtype=F64)
    mean, covariance = integrated(energy)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


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


class Banana(ce.Energy):
    r"""$x_1 \sim N(0, 1)$, $x_2 \mid x_1 \sim N(x_1^2, 1/4)$: gradients at the end of a trajectory are large."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].square() / 2 + 2 * (x[:, 1] - x[:, 0].square()).square()

    def exact(self, n: int) -> Tensor:
        first, second = Noise(123, range(n)).normal(torch.zeros(n, 2, dtype=F64)).T
        return torch.stack([first, first.square() + second / 2], 1)


class WithoutRatio(MALA):
    """Accepts as if the proposal were symmetric."""

    def step(self, energy, state, noise):
        x = state.x - self.step_size / 2 * state.grad + math.sqrt(self.step_size) * noise.normal(state.x)
        proposal = State(x, *energy_and_gradient(energy, x))
        return choose(state, proposal, state.energy - proposal.energy, noise, 1)


class LongLastKick(HMC):
    """The last half kick of the momentum is a whole one."""

    def step(self, energy, state, noise):
        momentum = noise.normal(state.x)
        before = state.energy + sum_of_each(momentum.square()) / 2
        proposal, momentum, _ = leapfrog(energy, state, momentum, self.step_size, self.leapfrogs)
        momentum = momentum - self.step_size / 2 * proposal.grad
        return choose(state, proposal, before - proposal.energy - sum_of_each(momentum.square()) / 2, noise, 1)


class PotentialOnly(HMC):
    """Forgets the momentum when it accepts."""

    def step(self, energy, state, noise):
        proposal, _, _ = leapfrog(energy, state, noise.normal(state.x), self.step_size, self.leapfrogs)
        return choose(state, proposal, state.energy - proposal.energy, noise, 1)


class OneCoin(HMC):
    """All chains accept by the same number."""

    def step(self, energy, state, noise):
        momentum = noise.normal(state.x)
        before = state.energy + sum_of_each(momentum.square()) / 2
        proposal, momentum, _ = leapfrog(energy, state, momentum, self.step_size, self.leapfrogs)
        log_ratio = before - proposal.energy - sum_of_each(momentum.square()) / 2
        accepted = log_ratio > noise.uniform(state.x, 1)[0].log()
        return State(
            *(
                torch.where(accepted.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(*map(astuple, (proposal, state)), strict=True)
            )
        ), None


class MomentumOfPoints(ChEES):
    """Draws the momentum in the units of the points, and weighs it in those of the metric."""

    def propose(self, energy, state, noise):
        count = math.ceil(van_der_corput(noise.step) * self.trajectory / self.step_size)
        momentum = self.metric.forth(noise.normal(state.x))
        return *propose(energy, state, momentum, self.step_size, count, self.metric), count


def astuple(state: State) -> tuple[Tensor, Tensor, Tensor]:
    return state.x, state.energy, state.grad


def worst_of_invariance(sampler) -> tuple[float, float]:
    """The largest z of five moments and the smallest p after 20 steps from exact draws: no burn-in, and independent chains."""
    n, energy = 20_000, Banana()
    noise = Noise(5, range(n))
    with torch.no_grad():
        state = sampler.init(energy, energy.exact(n), noise)
        for step in range(1, 21):
            state, _ = sampler.step(energy, state, noise.at(step))
    first, second = state.x[:, 0], (state.x[:, 1] - state.x[:, 0].square()) * 2
    scores = [
        first.mean(),
        second.mean(),
        (first * second).mean(),
        (first.square().mean() - 1) / 2**0.5,
        (second.square().mean() - 1) / 2**0.5,
    ]
    p = min(stats.kstest(values.numpy(), "norm").pvalue for values in (first, second))
    return max(abs(float(score)) for score in scores) * math.sqrt(n), p


STRETCHED = Metric(torch.tensor([0.8, 1.5], dtype=F64))
SLANTED = Metric(torch.tensor([[1.0, 0.0], [0.7, 1.2]], dtype=F64), torch.Size([2]))
EXACT = [
    *(MALA(0.1), HMC(0.15, leapfrogs=8), HMC(0.15, leapfrogs=8, jitter=False)),
    *(ChEES(0.15, 1.2), ChEES(0.15, 1.2, STRETCHED), ChEES(0.15, 1.2, SLANTED)),
]


@pytest.mark.parametrize("sampler", EXACT, ids=repr)
def test_exact_draws_stay_exact(sampler):
    worst, p = worst_of_invariance(sampler)
    assert worst < 4.5 and p > 1e-5


@pytest.mark.parametrize(
    "sampler",
    [
        *(WithoutRatio(0.1), LongLastKick(0.15, leapfrogs=8), PotentialOnly(0.15, leapfrogs=8), OneCoin(0.15, leapfrogs=8)),
        MomentumOfPoints(0.15, 1.2, STRETCHED),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_test_of_invariance_finds_planted_faults(sampler):
    worst, p = worst_of_invariance(sampler)
    assert worst > 4.5 or p < 1e-5


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
    momentum = trace.states[0][2].momentum
    of_x, of_momentum = sampler.temperature * variance, sampler.temperature * (1 - sampler.step_size**2 / (4 * variance))
    squares = (x.square().mean() / of_x - 1, momentum.square().mean() / of_momentum - 1)
    product = (x * momentum).mean() / math.sqrt(of_x * of_momentum) * math.sqrt(2 * n)
    return (*(abs(float(value)) * math.sqrt(n) for value in squares), abs(float(product)))


@pytest.mark.parametrize(("step_size", "friction", "temperature", "variance"), LAWS)
def test_underdamped_is_biased_as_derived(step_size, friction, temperature, variance):
    assert max(z_of_underdamped(Underdamped(step_size, friction, temperature), variance)) < 4


class NoiseOfEuler(Underdamped):
    """The noise is that of a step so small that friction takes nothing of it, 2 gamma h for 1 - c^2."""

    def step(self, energy, state, noise):
        slowed = self.friction * self.step_size
        hotter = Underdamped(self.step_size, self.friction, self.temperature * 2 * slowed / (1 - math.exp(-2 * slowed)))
        return hotter.step(energy, state, noise)


class FrictionLast(Underdamped):
    """The friction comes after the second kick, where the points are biased."""

    def step(self, energy, state, noise):
        kept = math.exp(-self.friction * self.step_size)
        after, momentum, _ = leapfrog(energy, state, state.momentum, self.step_size, 1)
        momentum = kept * momentum + math.sqrt((1 - kept**2) * self.temperature) * noise.normal(state.x)
        return replace(state, x=after.x, energy=after.energy, grad=after.grad, momentum=momentum), Info()


class StaleGradient(Underdamped):
    """The second kick takes the gradient of the point before."""

    def step(self, energy, state, noise):
        after, info = super().step(energy, state, noise)
        return replace(after, momentum=after.momentum + self.step_size / 2 * (after.grad - state.grad)), info


@pytest.mark.parametrize("fault", [NoiseOfEuler, FrictionLast, StaleGradient])
def test_the_law_of_underdamped_finds_planted_faults(fault):
    assert max(z_of_underdamped(fault(0.5), 1.0)) > 4.5


@pytest.mark.parametrize("name", ["product", "mixture", "not, by power", "not, by complement"])
def test_underdamped_with_small_steps_has_the_moments_of_the_integral(name):
    """At this step the bias, of second order, is far below a standard error."""
    n = 4000
    x = TARGETS[name].sample((n, 2), sampler=Underdamped(0.1), steps=150, seed=1, dtype=F64)
    mean, covariance = integrated(TARGETS[name])
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("metric", [Metric(), STRETCHED, SLANTED], ids=repr)
def test_leapfrog_is_reversible_of_second_order_and_keeps_volumes(metric):
    energy, n = Banana(), 500
    x = energy.exact(n)
    momentum = Noise(1, range(n)).normal(x)

    def follow(x, momentum, step_size, steps):
        state, momentum, _ = leapfrog(energy, State(x, *energy_and_gradient(energy, x)), momentum, step_size, steps, metric)
        return state.x, momentum

    there = follow(x, momentum, 0.1, 20)
    back, momentum_back = follow(there[0], -there[1], 0.1, 20)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(momentum_back, -momentum, rtol=0, atol=1e-11)

    def error(step_size):
        end, p = follow(x, momentum, step_size, round(1.6 / step_size))
        return (energy(end) + sum_of_each(p.square()) / 2 - energy(x) - sum_of_each(momentum.square()) / 2).abs().median()

    assert abs(math.log2(error(0.05) / error(0.025)) - 2) < 0.15

    def flat(point):
        x, p = follow(point[None, :2], point[None, 2:], 0.1, 5)
        return torch.cat([x[0], p[0]])

    point, h = torch.cat([x[0], momentum[0]]), 1e-6
    columns = [(flat(point + h * unit) - flat(point - h * unit)) / (2 * h) for unit in torch.eye(4, dtype=F64)]
    assert abs(torch.linalg.det(torch.stack(columns)) - 1) < 1e-8


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
