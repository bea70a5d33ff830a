"""ChEES: what it tunes, that nothing depends on the chains that are drawn, and that a tuned sampler is not tuned again."""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import composable_energy as ce
from composable_energy.errors import ShapeError
from composable_energy_mcmc import ChEES

F64 = torch.float64


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
    units = float(sampler.metric.scale.mean()) / scale
    assert 1.2 < sampler.trajectory * units < 4.5
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
    # One at the start, and two to compare a point with copies of itself.
    assert len(energy.sizes) == energy.sizes.count(9) == 3 + sum(again.scalars["leapfrogs"])
    assert again.sampler is trace.sampler and again.sampler == trace.sampler
    rest = energy.sample(9, sampler=trace.sampler, resume=energy.sample(9, sampler=trace.sampler, steps=5, seed=1, trace=True)[1], steps=15)
    torch.testing.assert_close(rest, x)


@pytest.mark.full
def test_a_tuned_metric_may_be_kept_for_another_energy():
    """Step and trajectory are tuned in its units."""
    metric = tuned(Gaussian(rotated(6, 30.0))).metric
    sampler = tuned(Gaussian(rotated(6, 40.0)), metric=metric, tuning_steps=60)
    assert sampler.metric is metric and sampler.step_size is not None
    with pytest.raises(ShapeError, match=r"tuned for points of shape \(6,\), got \(5,\)"):
        Gaussian(rotated(5, 40.0)).sample(2, sampler=sampler)


@pytest.mark.full
def test_draws_with_all_that_is_tuned_have_the_moments():
    """A product of Gaussians, one narrow and slanted, from a start far away; chains are independent."""
    n, covariance = 4000, torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=F64)
    narrow = ce.as_energy(MultivariateNormal(torch.tensor([2.0, -1.0], dtype=F64), covariance))
    wide = ce.as_energy(MultivariateNormal(torch.zeros(2, dtype=F64), 4 * torch.eye(2, dtype=F64)))
    x, trace = (narrow & wide).sample((n, 2), sampler="chees", steps=40, seed=0, init=torch.full((n, 2), 5.0, dtype=F64), trace=True)
    assert trace.sampler.metric.kind == "dense"
    exact = torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(2, dtype=F64) / 4)
    mean = exact @ torch.linalg.solve(covariance, torch.tensor([2.0, -1.0], dtype=F64))
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(exact), (x - mean).T, upper=False)
    assert z.mean(1).abs().max() < 4 / math.sqrt(n)
    assert (z @ z.T / n - torch.eye(2, dtype=F64)).abs().max() < 4 * math.sqrt(2 / n)


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
