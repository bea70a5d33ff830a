"""Samplers against densities that are known: biases as derived, modes with their weights, posteriors of minibatches, and log Z."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, SamplingDiverged, ShapeError
from composable_energy.sampling import Noise
from composable_energy.testing import Gaussian
from composable_energy_mcmc import SMC, Annealed, Langevin, Tempering, Underdamped, minibatched
from tests.refusals import refusals, refused

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")]

F64 = torch.float64


def gaussian(mean, covariance):
    return ce.as_energy(MultivariateNormal(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64)))


@pytest.mark.parametrize(("step_size", "temperature", "variance"), [(0.2, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 0.5, 2.0)])
def test_langevin_is_biased_as_derived(step_size, temperature, variance):
    """A wrong factor of two is tens of errors away, a lucky seed is not 4."""
    n = 20_000
    energy = gaussian([0.0, 0.0], [[variance, 0.0], [0.0, variance]])
    x = energy.sample((n, 2), sampler=Langevin(step_size, temperature), steps=80, seed=2, dtype=F64)
    expected = temperature * variance / (1 - step_size / (4 * variance))
    assert abs(x.square().mean() - expected) < 4 * expected / math.sqrt(n)


LAWS = [(0.5, 1.0, 1.0, 1.0), (1.5, 1.0, 1.0, 1.0), (1.0, 0.5, 0.5, 2.0), (0.9, 2.0, 1.0, 0.25), (0.5, 30.0, 1.0, 1.0)]


@pytest.mark.parametrize(("step_size", "friction", "temperature", "variance"), LAWS)
def test_underdamped_is_biased_as_derived(step_size, friction, temperature, variance):
    """Points are unbiased, the squares of momenta are off by the square of the step; points and momenta are independent."""
    n, sampler = 20_000, Underdamped(step_size, friction, temperature)
    energy = gaussian([0.0, 0.0], [[variance, 0.0], [0.0, variance]])
    start = math.sqrt(temperature * variance) * Noise(1, range(n)).normal(torch.zeros(n, 2, dtype=F64))
    x, trace = energy.sample((n, 2), sampler=sampler, steps=60, seed=2, init=start, trace=True)
    momentum = trace.state.momentum
    of_x, of_momentum = temperature * variance, temperature * (1 - step_size**2 / (4 * variance))
    assert abs(x.square().mean() / of_x - 1) * math.sqrt(n) < 4 and abs(momentum.square().mean() / of_momentum - 1) * math.sqrt(n) < 4
    assert abs((x * momentum).mean()) / math.sqrt(of_x * of_momentum) * math.sqrt(2 * n) < 4


CENTRES = torch.tensor([[-1.2, -0.4], [1.0, 0.8]])


def noisy_mixture(x: Tensor, sigma: Tensor) -> Tensor:
    r"""A mixture of narrow Gaussians with noise of level $\sigma$ added: what a noise-conditional network learns."""
    variance = (0.01 + sigma.square())[:, None]
    return -torch.logsumexp(-(x[:, None] - CENTRES).square().sum(2) / (2 * variance) + torch.tensor([0.3, 0.7]).log() - variance.log(), 1)


def test_annealed_finds_modes_with_their_weights():
    """Plain Langevin at the lowest level stays in the mode that it meets first."""
    n = 4000
    x = ce.as_energy(noisy_mixture, event_shape=(2,)).sample(n, seed=0, sampler=Annealed())
    left = (x[:, 0] < 0).float().mean()
    assert abs(left - 0.3) < 4 * math.sqrt(0.21 / n) + 0.03  # as many levels as by default leave a bias of some hundredths
    inside = (x[:, None] - CENTRES).norm(dim=2).amin(1)
    assert inside.max() < 0.6 and abs(inside.square().mean() - 0.02) < 0.006


def test_annealed_without_noise_levels_lowers_the_temperature():
    x, trace = gaussian([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).sample((4000, 2), sampler=Annealed(delta=0.05), seed=0, trace=True, dtype=F64)
    assert trace.scalars["temperature"][0] == 17 and trace.scalars["temperature"][-1] == 1
    assert (x.mean(0) - torch.tensor([1.0, 0.0])).abs().max() < 0.1 and (x.var(0) - 1).abs().max() < 0.1


# Annealing from a Gaussian


WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
MEANS = 3 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)
QUICK = Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0)


class Four(ce.Energy):
    """Modes that no local chain leaves: the barrier between two is 25."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x) * x.requires_grad
        return -torch.logsumexp(WEIGHTS.log() - (x[:, None] - MEANS).square().sum(2) / (2 * 0.3**2), 1)


def shares(points: Tensor) -> Tensor:
    nearest = torch.cdist(points.reshape(-1, 2), MEANS).argmin(1)
    return torch.bincount(nearest, minlength=4) / len(nearest)


@pytest.mark.full
def test_modes_get_their_weights_from_one_start_and_tuning_is_in_the_budget():
    start, found = MEANS[:1].expand(32, 2).clone(), []
    for seed in (0, 1):  # the shares of one run are off by .013 in the mean of many
        energy = Four()
        _, trace = energy.sample((32, 2), sampler="tempering", init=start, steps=240, seed=seed, trace=1, burn_in=40)
        assert energy.count < 500_000
        pairs = [values[40:] for name, values in trace.scalars.items() if name.startswith("swaps[")]
        assert len(pairs) == len(trace.sampler.schedule.levels) - 1 and min(sum(values) / len(values) for values in pairs) > 0.3
        assert shares(energy.sample((32, 2), sampler="hmc", init=start, steps=100, seed=seed))[0] == 1
        found.append(trace.points)
    assert (shares(torch.cat(found)) - WEIGHTS).square().mean().sqrt() <= 0.02


LABELLED = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) * 2)


@pytest.mark.full
def test_each_chain_keeps_its_own_condition_whatever_the_chunks():
    y = torch.arange(400, dtype=F64) % 5
    energy = LABELLED.given(y=y) & Gaussian(torch.zeros(2, dtype=F64), 5.0)
    x = energy.sample((400, 2), sampler=QUICK, steps=30, seed=0)
    torch.testing.assert_close(energy.sample((400, 2), sampler=QUICK, steps=30, seed=0, batch_size=150), x)
    variance = 1 / (4 + 1 / 25)
    white = (x - (4 * variance * y)[:, None]) / math.sqrt(variance)
    assert white.mean().abs() < 4 / math.sqrt(800) and (white.square().mean() - 1).abs() < 4 * math.sqrt(2 / 800)


@pytest.mark.full
def test_a_broken_energy_that_only_hot_replicas_see_is_reported():
    broken = ce.as_energy(lambda x: torch.where(x.norm(dim=1) > 7, -torch.inf, 1.0) * x.square().sum(1) * 5)
    assert broken.sample((20, 2), sampler="hmc", seed=0).norm(dim=1).max() < 2
    refused(SamplingDiverged, None, broken.sample, (20, 2), sampler=QUICK, steps=60, seed=0)
    x, _ = broken.sample((20, 2), sampler=QUICK, steps=60, seed=0, on_divergence="keep", trace=True)
    assert x.shape == (20, 2) and x.norm(dim=1).max() < 2


@pytest.mark.full
def test_a_schedule_that_was_tuned_is_kept_and_depends_on_the_energy_alone():
    energy = Gaussian(torch.zeros(2))
    call = {"sampler": Tempering(leapfrogs=3), "steps": 1, "seed": 0, "trace": True}
    tuned = [energy.sample(n, batch_size=size, **call)[1].sampler for n, size in ((1, None), (70, 20))]
    assert tuned[0].schedule.levels == tuned[1].schedule.levels and tuned[0].schedule.step_sizes == tuned[1].schedule.step_sizes
    assert energy.sample(5, sampler=tuned[0], steps=1, seed=3, trace=True)[1].sampler.schedule is tuned[0].schedule
    refused(ShapeError, r"tuned for points of shape \(2,\), got \(3,\)", Gaussian(torch.zeros(3)).sample, 5, sampler=tuned[0])


# Sequential Monte Carlo


def rotated(axes: int) -> ce.Energy:
    """A Gaussian with condition number 100 and a random rotation, not normalised."""
    rotation = torch.linalg.qr(torch.randn(axes, axes, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
    precision = (rotation / torch.logspace(-1, 1, axes, dtype=F64)) @ rotation.T
    return ce.as_energy(lambda x: (x @ precision * x).sum(1) / 2, name="rotated")


TARGETS = {
    "mixture": (Four(), 2, 512, SMC(), math.log(2 * math.pi * 0.09)),
    "rotated": (rotated(32), 32, 256, SMC(leapfrogs=6), 16 * math.log(2 * math.pi)),  # the logarithms of the variances add up to 0
}


def tuned(energy: ce.Energy, axes: int, sampler: SMC) -> SMC:
    return energy.sample((1, axes), sampler=sampler, steps=1, seed=1000, dtype=F64, trace=True)[1].sampler


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_log_z_is_within_its_standard_errors_and_these_are_right(name):
    """Over independent runs z has mean 0 and standard deviation 1; the bounds are some of its own standard errors away."""
    energy, axes, chains, sampler, truth = TARGETS[name]
    sampler, scores, errors = tuned(energy, axes, sampler), [], []
    for seed in range(20):
        _, trace = energy.sample((chains, axes), sampler=sampler, seed=seed, dtype=F64, trace=True)  # few families survive
        errors.append(trace.scalars["log_z"][-1] - truth)
        scores.append(errors[-1] / trace.scalars["log_z_se"][-1])
    scores = torch.tensor(scores)
    assert scores.abs().max() < 3.5 and scores.mean().abs() < 4 / math.sqrt(20) and 0.6 < scores.std() < 1.5
    assert torch.tensor(errors).square().mean().sqrt() < {"mixture": 0.12, "rotated": 0.4}[name]


def test_points_have_equal_weights_at_the_end():
    n, energy = 4000, Four()
    x, trace = energy.sample((n, 2), sampler="smc", seed=0, dtype=F64, trace=True)
    shares = torch.bincount(torch.cdist(x, MEANS).argmin(1), minlength=4) / n
    assert (shares - WEIGHTS).abs().max() < 4 * trace.scalars["log_z_se"][-1]  # families share their errors with log Z
    assert abs((x[:, None] - MEANS).norm(dim=2).amin(1).square().mean() - 0.18) < 5 * 0.18 / math.sqrt(n)
    assert trace.scalars["b"][0] < 0.1 and trace.scalars["b"][-4:] == [1.0] * 4 and trace.scalars["b"] == sorted(trace.scalars["b"])
    assert trace.scalars["ess"][-1] == pytest.approx(n) and 0.3 * n < min(trace.scalars["ess"])
    assert len(trace.energies) == trace.sampler.total_steps and len(x.unique(dim=0)) > 0.95 * n
    assert abs(trace.scalars["log_z"][-1] - math.log(2 * math.pi * 0.09)) < 4 * trace.scalars["log_z_se"][-1]


def test_points_without_a_density_have_no_weight():
    half = ce.as_energy(lambda x: torch.where(x > 0, 2 * x, torch.inf).sum(1), event_shape=(1,))  # its support is not known
    x, trace = half.sample((4000, 1), sampler=SMC(mean=0.0, scale=2.0), seed=0, dtype=F64, init=torch.ones(4000, 1, dtype=F64), trace=True)
    assert x.min() > 0 and abs(x.mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)
    assert abs(trace.scalars["log_z"][-1] + math.log(2)) < 4 * trace.scalars["log_z_se"][-1] < 0.2
    with pytest.raises(OptionError, match="no pilot point at level 0 has a density"):
        half.sample((4, 1), sampler=SMC(mean=-50.0, scale=1.0), init=torch.ones(4, 1))


def test_a_broken_energy_is_reported_and_an_undefined_one_has_density_zero():
    """A small part of the base lies outside."""
    outside = lambda value: ce.as_energy(lambda x: torch.where(x.norm(dim=1) > 4, value, 1.0) * x.square().sum(1) * 2)
    sampler = SMC(leapfrogs=3, mean=0.0, scale=1.5)
    refused(SamplingDiverged, None, outside(-math.inf).sample, (1000, 2), sampler=sampler, seed=0, dtype=F64)
    x, trace = outside(math.nan).sample((1000, 2), sampler=sampler, seed=0, dtype=F64, trace=True)
    assert trace.errors > 0 and x.norm(dim=1).max() < 4 and abs(x.var() - 0.25) < 0.05
    assert abs(trace.scalars["log_z"][-1] - math.log(math.pi / 2)) < 5 * trace.scalars["log_z_se"][-1]


@pytest.mark.full
def test_chains_with_conditions_of_their_own_are_refused():
    base = ce.as_energy(Normal(torch.zeros(2), 1.0))
    refused(ExpressionError, "bind one value for all", (LABELLED.given(y=torch.arange(4.0)) & base).sample, (4, 2), sampler="smc", seed=0)
    x = (LABELLED.given(y=2.0) & base).sample((500, 2), sampler="smc", seed=0, batch_size=100)
    assert (x.mean(0) - 1.6).abs().max() < 5 * math.sqrt(0.2 / 500)


def test_levels_are_as_many_as_asked_for_and_cost_what_they_say():
    calls = []
    energy = ce.as_energy(MultivariateNormal(torch.zeros(2), torch.eye(2))) & (lambda x: calls.append(len(x)) or 0 * x[:, 0])
    sampler = SMC(levels=5, moves=2, leapfrogs=1)
    assert sampler.total_steps == 8
    _, trace = energy.sample((10, 2), sampler=sampler, seed=0, trace=True)
    calls.clear()
    _, again = energy.sample((10, 2), sampler=trace.sampler, seed=0, trace=True)
    assert again.sampler.schedule is trace.sampler.schedule and sum(calls) == 10 * (3 + 2 * 8) + 2 and trace.scalars["b"][-4:] == [1.0] * 4
    _, alone = energy.sample((1, 2), sampler=trace.sampler, seed=0, trace=True)
    assert alone.scalars["log_z_se"][-1] == math.inf  # one chain says nothing of its error
    refused(OptionError, "takes 8 steps: 0 are done, and 9 were asked for", energy.sample, (10, 2), sampler=trace.sampler, steps=9)
    for options in ({"levels": 0}, {"kept": 1.0}, {"moves": 0}, {"mean": 0.0}):
        refused(OptionError, next(iter(options)), SMC, **options)


@pytest.mark.parametrize("sampler", ["annealed", "feynman-kac"])
def test_start_points_that_the_first_noise_level_would_erase_are_refused(sampler):
    noisy = lambda x, sigma: ((x - 1).square() / (1 + sigma[:, None] ** 2)).sum(1) / 2
    energy, x = ce.as_energy(noisy, event_shape=(4,)), torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    refused(OptionError, "init", energy.sample, 100, sampler=sampler, init=x)


def test_start_points_with_the_noise_of_the_first_level_are_kept_to_its_width():
    noisy = lambda x, sigma: (x - x.round()).square().sum(1) / 2 / (0.01 + sigma**2)
    start = torch.arange(100.0)[:, None].repeat(1, 4)
    draws = ce.as_energy(noisy, event_shape=(4,)).sample(100, sampler=Annealed(sigma_max=0.1, sigma_min=0.01), init=start, seed=0)
    assert (draws - start).abs().max() < 1


# Energies of many rows by `minibatched`, against the exact posterior of a slope with 100,000 rows.

N = 100_000
A, NOISE = torch.randn(2, N, generator=torch.Generator().manual_seed(0), dtype=F64)
VARIANCE = 1 / (A.square().sum() + 1)  # with a standard normal prior
MEAN = VARIANCE * (A * (2 * A + NOISE)).sum()
PRIOR, FIT = ce.as_energy(Normal(torch.zeros(1, dtype=F64), 1.0)), [A, 2 * A + NOISE]
STEPS = {"sampler": "langevin", "step_size": 0.1 * VARIANCE.item(), "steps": 300, "seed": 0, "dtype": F64}
SD = VARIANCE.sqrt().item()
MOMENTA = {**STEPS, "sampler": "underdamped", "step_size": 0.5 * SD, "friction": 1 / SD, "steps": 100}


def line(x, a, y):
    return (y - x * a).square() / 2


@pytest.mark.filterwarnings("error::composable_energy.SamplingWarning")
@pytest.mark.parametrize(("call", "variance"), [(STEPS, VARIANCE / (1 - 0.1 / 4)), (MOMENTA, VARIANCE)], ids=["langevin", "underdamped"])
def test_draws_are_those_of_the_posterior_for_any_batch_size(call, variance):
    energy, n = minibatched(line, FIT, 100, event_shape=(1,)) & PRIOR, 256
    x = energy.sample(n, **call)
    assert abs(x.mean() - MEAN) < 4 * (VARIANCE / n).sqrt() and x.var() / variance == pytest.approx(1, rel=4 * (2 / n) ** 0.5)
    assert torch.equal(energy.sample(n, batch_size=100, **call), x)


def test_the_estimate_is_right_on_average_and_a_far_center_warns():
    far = minibatched(line, FIT, 100, center=torch.ones(1, dtype=F64))
    each = (torch.arange(N, dtype=F64) + 0.5) / N
    estimates = torch.cat([far.with_gradient(torch.full((len(some), 1), 2.0, dtype=F64), minibatch=some)[1] for some in each.split(5000)])
    torch.testing.assert_close(estimates.mean(), (A * (2 * A - FIT[1])).sum(), rtol=0, atol=1e-3)
    for call in (STEPS, MOMENTA):  # the variance of the gradient is 50 times that of the step
        with pytest.warns(ce.SamplingWarning, match="bias: The step is so long"):
            (far & PRIOR).sample(64, init=torch.full((64, 1), 2.0, dtype=F64), **call)


test_what_has_no_estimate_is_refused = refusals(
    (lambda: (minibatched(line, FIT, 9, event_shape=(1,)) & PRIOR).sample(3, sampler="mala"), ExpressionError, "needs values"),
    (lambda: minibatched(line, FIT, 9, event_shape=(1,)).sample(3), OptionError, "give `step_size`"),
    (lambda: minibatched(line, FIT, 9), OptionError, "Give `event_shape`"),
    (lambda: minibatched(line, [1, 2, 3], 2, event_shape=(1,)), OptionError, "a row for each datum: write `torch.as_tensor"),
    (lambda: minibatched(line, FIT, N + 1, event_shape=(1,)), OptionError, "at most the number of rows, 100000"),
    (lambda: minibatched(line, [A, A[1:]], 9, event_shape=(1,)), ShapeError, "100000, 99999 rows"),
    (lambda: minibatched(lambda x, a: a.sum(1) * x, A, 9, center=torch.ones(1, dtype=F64)), ShapeError, "one number for each row"),
    (lambda: minibatched(lambda x, a: x.log(), A, 9, event_shape=(1,)), ShapeError, "one number for each row"),
)
