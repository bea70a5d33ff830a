"""Samplers on the fused step: each calls it, MALA's ratio needs no noise, and Langevin takes a metric."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import State
from composable_energy.sampling.noise import Noise
from composable_energy.testing import Gaussian
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped
from composable_energy_mcmc.mala import langevin_log_ratio
from composable_energy_mcmc.metric import Metric

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


@pytest.mark.parametrize(
    "sampler",
    [Langevin(0.1), Langevin(0.1, metric=torch.ones(3)), MALA(0.1), Underdamped(0.1), HMC(0.2, leapfrogs=2), ChEES(0.2, 0.5)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_takes_its_noise_by_the_step(sampler, recorded):
    target = Gaussian(torch.zeros(3))
    noise = Noise(1, range(5), kind="philox")
    with torch.no_grad():
        state = sampler.init(target, torch.zeros(5, 3), noise)
        for step in range(1, 5):
            state, _ = sampler.step(target, state, noise.at(step))
    steps = [noise.step for noise in recorded.calls]
    assert steps == [0] * isinstance(sampler, Underdamped) + [1, 2, 3, 4]
    assert {(noise.seed, noise.chains, noise.kind) for noise in recorded.calls} == {(1, range(5), "philox")}


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 1e3), (torch.bfloat16, 1.0), (F64, 1e3)])
def test_malas_ratio_is_that_of_the_step_that_was_taken(dtype, spread):
    """Beside float64 from the same rounded points; where they were rounded, a ratio made of the noise is that of another step."""
    step_size, generator = 0.04, torch.Generator().manual_seed(0)
    x, xi, here = (torch.randn(2000, 12, generator=generator, dtype=F64) for _ in range(3))
    x, here = (spread * x).to(dtype), here.to(dtype)
    y = (x.to(F64) - step_size / 2 * here.to(F64) + math.sqrt(step_size) * xi).to(dtype)
    there = (here.to(F64) + 0.1 * xi).to(dtype)
    energies = torch.zeros(2000, dtype=torch.promote_types(dtype, torch.float32))
    got = langevin_log_ratio(State(x, energies, here), State(y, energies, there), step_size)
    wide = [value.to(F64) for value in (x, y, here, there)]

    def log_density(start, grad, end):
        return -(end - start + step_size / 2 * grad).square().sum(1) / (2 * step_size)

    exact = log_density(wide[1], wide[3], wide[0]) - log_density(wide[0], wide[2], wide[1])
    assert got.dtype == energies.dtype
    assert (got - exact).abs().max() < (1e-10 if dtype == F64 else 2e-5)
    if dtype == torch.float32:
        scale = math.sqrt(step_size)
        s = (here + there) * (scale / 2)
        by_noise = ((xi.float() - s / 2) * s).sum(1)
        assert (got - exact).abs().max() < max(2e-6, 0.1 * (by_noise - exact).abs().max() * (spread > 1))


def covariance(size: int) -> torch.Tensor:
    axes = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
    return axes * torch.logspace(-2, 2, size, dtype=F64) @ axes.T


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "temperature"), [("tensor", 0.5), ("dense", 1.0)])
def test_a_metric_whitens_the_law_of_the_bias(kind, temperature):
    r"""In whitened coordinates the variance is T / (1 - lambda / 4) along every axis, however narrow the target; 4.5 standard errors."""
    step_size, chains, size = 0.8, 20_000, 4
    sigma = covariance(size) if kind == "dense" else torch.diag(torch.logspace(-2, 2, size, dtype=F64))
    factor = torch.linalg.cholesky(sigma)
    scales = sigma.diagonal().sqrt()
    metric = Metric(factor, torch.Size([size])) if kind == "dense" else scales
    precision = torch.linalg.inv(sigma)
    target = ce.as_energy(lambda x: (x @ precision * x).sum(1) / 2)
    x = target.sample((chains, size), sampler=Langevin(step_size, temperature, metric=metric), steps=25, seed=0, dtype=F64)
    white = torch.linalg.solve_triangular(factor, x.T, upper=False)
    variance = temperature / (1 - step_size / 4)
    error = variance / math.sqrt(chains)
    spread = torch.cov(white) - variance * torch.eye(size, dtype=F64)
    assert (spread.diagonal().abs() < 4.5 * math.sqrt(2) * error).all()
    assert (spread.abs() < 4.5 * math.sqrt(2) * error).all()
    assert (white.mean(1).abs() < 4.5 * math.sqrt(variance / chains)).all()


def test_a_metric_of_ones_changes_no_bits_and_the_noise_is_scaled():
    target, start = Gaussian(torch.zeros(2, 3, dtype=F64)), torch.randn(5, 2, 3, dtype=F64)
    plain = target.sample((5, 2, 3), sampler=Langevin(0.1), steps=1, seed=0, init=start)
    ones = target.sample((5, 2, 3), sampler=Langevin(0.1, metric=torch.ones(2, 3)), steps=1, seed=0, init=start)
    torch.testing.assert_close(ones, plain, rtol=0, atol=1e-14)
    twice = target.sample((5, 2, 3), sampler="langevin", step_size=0.1, metric=torch.full((2, 3), 2.0), steps=1, seed=0, init=start)
    xi = Noise(0, range(5), step=1).normal(start)
    torch.testing.assert_close(twice, start - 0.05 * 4 * start + math.sqrt(0.1) * 2 * xi, rtol=0, atol=1e-14)


@pytest.mark.full
def test_a_diagonal_metric_and_a_box_draw_the_truncated_density():
    """Walls reflect along the scales: an exponential density keeps its mean of one where each axis has another scale."""
    rates = torch.tensor([1.0, 4.0], dtype=F64)
    target = ce.as_energy(lambda x: (x * rates).sum(1), event_shape=(2,))
    sampler = Langevin(0.002, metric=1 / rates, clamp=(0.0, 20.0))
    init = -torch.rand(4000, 2, dtype=F64).log() / rates
    x = target.sample((4000, 2), sampler=sampler, steps=1500, seed=0, init=init)  # chains are slow, and start at draws
    # Points at the wall are pulled to it: a bias of the order of the root of the step, the same for both axes.
    means = x.mean(0) * rates
    assert (means - 1).abs().max() < 4.5 / math.sqrt(4000) + math.sqrt(0.002)
    assert abs(means[0] - means[1]) < 4.5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Langevin(0.1, metric=Metric(torch.eye(2), torch.Size([2])), clamp=(0, 1)), "A dense metric and clamp draw from another"),
        (lambda: Langevin(0.1, metric=torch.tensor([1.0, math.nan])), "scales of a metric must be positive, finite"),
        (lambda: Langevin(0.1, metric=Metric(-torch.eye(2), torch.Size([2]))), "scales of a metric must be positive, finite"),
        (lambda: Langevin(0.1, metric="dense"), "metric must be a Metric, or a tensor of scales with the shape of a point, got 'dense'"),
    ],
)
def test_metrics_that_do_not_fit_are_reported(make, message):
    with pytest.raises(OptionError, match=message):
        make()
    with pytest.raises(ShapeError, match=r"tuned for points of shape \(3,\), got \(2,\)"):
        Gaussian(torch.zeros(2)).sample(4, sampler=Langevin(0.1, metric=torch.ones(3)), steps=1)
