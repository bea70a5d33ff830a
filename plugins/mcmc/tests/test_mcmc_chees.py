"""Samplers of the package: the kit on each; what ChEES tunes, and nothing by its own draws; descent, whose energies never rise."""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import SamplingDiverged, ShapeError
from composable_energy.testing import Check, parametrize_with_checks, sampler_checks
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Descent, FeynmanKac, Langevin, Tempering, Underdamped
from tests.refusals import refused

CHECKS = {
    "langevin": sampler_checks(Langevin(0.5), steps=60, variance=1 / (1 - 0.5 / 4)),
    "mala": sampler_checks(MALA(1.0), steps=60, exact=True),
    "hmc": sampler_checks(HMC(0.6, leapfrogs=4), steps=30, exact=True),
    "underdamped": sampler_checks(Underdamped(1.0), steps=60),  # unbiased on a Gaussian
    "descent": sampler_checks(Descent(), steps=30),
    "chees": sampler_checks(ChEES(0.3, 1.5), steps=30, exact=True),
    "annealed, corrected": sampler_checks(Annealed(levels=5, sigma_min=0.5, corrector=HMC(0.6, leapfrogs=4)), variance=1 / (1 + 0.25)),
    "smc": sampler_checks(SMC(leapfrogs=3, mean=0.0, scale=2.0)),
}
SLOWER = {
    "feynman-kac": sampler_checks(FeynmanKac(levels=20)),
    "annealed": sampler_checks(Annealed(), bias=0.12),  # 40 levels are too few for the last hundredths
    "mala, tuned": sampler_checks(MALA(), steps=60, exact=True),
    "hmc, tuned": sampler_checks(HMC(tuning_steps=50), steps=30, exact=True),
    "chees, tuned": sampler_checks(ChEES(tuning_steps=60, max_leapfrogs=16), steps=30, exact=True),
    "tempering": sampler_checks(Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0), steps=40, exact=False),  # only all levels are exact
}
EXPECTED = {"descent: seed": "it draws nothing", "descent: noise": "it draws nothing", "descent: moments": "it ends in the mode"}
F64 = torch.float64


def named(samplers: dict[str, list[Check]]) -> list[Check]:
    return [Check(f"{name}: {check.name}", check.function) for name, checks in samplers.items() for check in checks]


@pytest.mark.slow
@parametrize_with_checks(named(CHECKS), expected_failures=EXPECTED)
def test_samplers_keep_what_samplers_keep(check: Check) -> None:
    check()


@pytest.mark.full
@parametrize_with_checks(named(SLOWER), expected_failures={"feynman-kac: values": "it draws no energy whose noise level is bound"})
def test_tuned_samplers_and_long_schedules_keep_it_too(check: Check) -> None:
    check()


class Gaussian(ce.Energy):
    """A Gaussian with a covariance, over all axes of a point; counts its evaluations, those of its copies too."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, covariance: Tensor, event: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.precision = torch.linalg.inv(covariance)
        self.event_shape = torch.Size(event or (len(covariance),))

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        flat = x.flatten(1)
        return (flat @ self.precision.to(x) * flat).sum(1) / 2


def rotated(size: int, condition: float) -> Tensor:
    """A covariance with variances around 1 in no particular directions."""
    axes = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
    return axes * torch.logspace(-math.log10(condition) / 2, math.log10(condition) / 2, size, dtype=F64) @ axes.T


def tuned(energy, n=2, **options):
    return energy.sample(n, sampler=ChEES(**options), steps=1, seed=0, trace=True)[1].sampler


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, *(pytest.param(scale, marks=pytest.mark.full) for scale in (1e-3, 1e3))])
def test_tuning_finds_the_units(scale):
    """The cheapest draws come near a quarter of a period for the mean length of a trajectory, half the longest one."""
    energy = Gaussian(scale**2 * torch.eye(10, dtype=F64))
    sampler = tuned(energy, metric="diagonal")
    assert sampler.metric.kind == "diagonal" and 0.5 < sampler.metric.scale.mean() / scale < 2
    assert 1.2 < sampler.trajectory * (float(sampler.metric.scale.mean()) / scale) < 4.5
    _, trace = energy.sample(64, sampler=sampler, steps=30, seed=1, init=scale * torch.randn(64, 10, dtype=F64), trace=True)
    assert 0.7 < trace.acceptance.mean() < 0.95  # those of all tuned steps vary around .75


@pytest.mark.full
def test_correlations_are_taken_away_where_a_matrix_pays():
    """With it a trajectory has as many leapfrogs as if there were none."""
    energy, white = Gaussian(rotated(20, 100.0)), Gaussian(torch.eye(20, dtype=F64))
    dense, identity, none = tuned(energy), tuned(energy, metric="identity"), tuned(white)
    assert (dense.metric.kind, identity.metric.kind, none.metric.kind) == ("dense", "identity", "diagonal")
    ratios = [sampler.trajectory / sampler.step_size for sampler in (dense, identity, none)]
    assert ratios[0] < 1.6 * ratios[2] and ratios[1] > 3 * ratios[0]  # 2 and 3 leapfrogs are neighbours among those that are tried


def test_a_tuned_sampler_is_not_tuned_again_and_takes_one_gradient_a_leapfrog():
    energy = Gaussian(rotated(6, 30.0), (2, 3))
    _, trace = energy.sample(7, sampler="chees", steps=1, seed=0, trace=True, tuning_steps=60)
    assert "metric=Metric('dense', (2, 3))" in repr(trace.sampler)
    energy.sizes.clear()
    x, again = energy.sample(9, sampler=trace.sampler, steps=20, seed=1, trace=True)
    # One at the start, and two to compare a point with copies of itself, beside one of two copies.
    assert sorted(energy.sizes) == [2] + [9] * (3 + sum(again.scalars["leapfrogs"]))
    assert again.sampler is trace.sampler and again.sampler == trace.sampler
    rest = energy.sample(9, sampler=trace.sampler, resume=energy.sample(9, sampler=trace.sampler, steps=5, seed=1, trace=True)[1], steps=15)
    torch.testing.assert_close(rest, x)


@pytest.mark.full
def test_a_tuned_metric_may_be_kept_for_another_energy():
    """Step and trajectory are tuned in its units."""
    metric = tuned(Gaussian(rotated(6, 30.0))).metric
    sampler = tuned(Gaussian(rotated(6, 40.0)), metric=metric, tuning_steps=60)
    assert sampler.metric is metric and sampler.step_size is not None
    refused(ShapeError, r"tuned for points of shape \(6,\), got \(5,\)", Gaussian(rotated(5, 40.0)).sample, 2, sampler=sampler)


def gaussian_and(function, dimension=2):
    return ce.as_energy(lambda x: x.square().sum(1) / 2 + function(x), event_shape=(dimension,))


JUMPS = {"a high step in 20-D": (lambda x: 10 * (x[:, 0] > 1).float(), 20), "stairs": (lambda x: (2 * x).round().square().sum(1) / 16, 2)}


@pytest.mark.full
@pytest.mark.parametrize("name", JUMPS)
def test_step_sizes_suit_the_smooth_part_of_energies_that_jump(name):
    """No step avoids the jumps; those of a whitened Gaussian are about 1."""
    function, dimension = JUMPS[name]
    x, trace = gaussian_and(function, dimension).sample(2000, seed=0, sampler="chees", trace=True)
    assert trace.sampler.step_size > 0.4 and sum(trace.scalars["leapfrogs"]) < 4 * 100
    exact = torch.randn(400_000, dimension, generator=torch.Generator().manual_seed(1))
    weights = (-function(exact)).exp() / (-function(exact)).exp().sum()
    for values, expected in ((x[:, 0], exact[:, 0]), (x[:, 0].square(), exact[:, 0].square()), (function(x), function(exact))):
        mean = weights @ expected
        error = 4 * (weights @ (expected - mean).square() / 2000 + (weights.square() @ (expected - mean).square())).sqrt()
        assert abs(values.mean() - mean) < error


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's function, with its one minimum at (1, 1)."""
    return (1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_narrow_valley_takes_tens_of_steps(scale):
    """Steps that are all short enough for the walls of condition number 100 take more than 1,000."""
    widths = torch.logspace(-1, 1, 100, dtype=F64) * scale**2
    energy = ce.as_energy(lambda x: (x.square() / widths).sum(1) / 2)
    start = torch.randn(64, 100, dtype=F64) * scale
    x, trace = energy.sample((64, 100), sampler=Descent(tolerance=0), steps=120, seed=0, init=start, trace=True)
    assert energy(x).max() < 1e-6 * trace.energies[0].min()


@pytest.mark.slow
def test_energies_never_rise_and_the_minimum_is_found():
    x, trace = ce.as_energy(valley).sample((50, 2), sampler="descent", seed=0, dtype=F64, trace=True)
    assert (trace.energies.diff(dim=0) <= 0).all()
    torch.testing.assert_close(x, torch.ones(50, 2, dtype=F64), rtol=0, atol=1e-5)


def test_a_wall_is_stepped_back_from_and_a_broken_energy_is_reported():
    """Gamma's density rises to its mode and is zero below 0; the first step of this chain would leave the support."""
    gamma = ce.as_energy(torch.distributions.Gamma(torch.full((1,), 3.0, dtype=F64), 1.0))
    x = gamma.sample((1, 1), sampler=Descent(step_size=50.0), init=torch.full((1, 1), 9.0, dtype=F64))
    torch.testing.assert_close(x, torch.full((1, 1), 2.0, dtype=F64), rtol=0, atol=1e-5)
    broken = ce.as_energy(lambda x: torch.where(x.norm(dim=1) < 0.5, torch.nan, 1.0) * x.square().sum(1) / 2)
    refused(SamplingDiverged, None, broken.sample, (50, 2), sampler="descent", seed=0, init=torch.ones(50, 2))
