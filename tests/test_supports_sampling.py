"""Samples on a support against quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.supports import contains, sphere
from tests.distribution_values import F64, t
from tests.support_values import MIXED, SHORT

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

DENSITIES = {  # on (0, 1) or the half-line: an energy of one number, and the ends of the quadrature
    "beta": (lambda x: -x.log() - 2 * (1 - x).log(), constraints.unit_interval, (0, 1)),
    "product of betas": (td.Beta(t(2.0), t(1.5)), td.Beta(t(1.2), t(3.0)), (0, 1)),
    "beta and wave": (td.Beta(t(2.0), t(2.0)), lambda x: (8 * x).sin(), (0, 1)),
    "truncated normal": (td.Normal(t(0.5), t(1.0)), constraints.interval(0.0, 1.0), (0, 1)),
    "uniform and slope": (td.Uniform(t(-1.0), t(3.0)), lambda x: x, (-1, 3)),
    "kumaraswamy and normal": (td.Kumaraswamy(t(2.0), t(3.0)), td.Normal(t(0.2), t(0.3)), (0, 1)),
    "gamma and exponential": (td.Gamma(t(2.0), t(1.0)), td.Exponential(t(1.0)), (0, 40)),
    "half normal": (td.Normal(t(-0.5), t(1.0)), constraints.positive, (0, 12)),
    "weibull and wall": (td.Weibull(t(1.0), t(1.5)), constraints.less_than(2.0), (0, 2)),
    "inverse gamma and gamma": (td.InverseGamma(t(2.0), t(1.0)), td.Gamma(t(2.0), t(2.0)), (0, 40)),
    "line below one": (lambda x: x.square() - x, constraints.less_than(1.0), (-9, 1)),
    "pareto and exponential": (td.Pareto(t(1.0), t(2.0)), td.Exponential(t(0.5)), (1, 60)),
}


def lift(part):
    if isinstance(part, constraints.Constraint):
        return ce.inside(part)
    return ce.as_energy(part) if isinstance(part, td.Distribution) else ce.as_energy(lambda x: part(x).sum(1), event_shape=(1,))


@pytest.mark.full
@pytest.mark.parametrize(("first", "second", "ends"), DENSITIES.values(), ids=DENSITIES)
def test_moments_are_those_of_quadrature(first, second, ends):
    energy = lift(first).on(second) if isinstance(second, constraints.Constraint) else lift(first) & lift(second)
    low, high = ends
    x = (torch.arange(200_000, dtype=F64)[:, None] + 0.5) / 200_000 * (high - low) + low
    weight = torch.softmax(-energy(x), 0)[:, None]
    n, median = 4000, x[weight.cumsum(0) > 0.5][0]
    drawn = energy.sample(n, seed=0, dtype=F64, init=median.expand(n, 1), **SHORT)
    assert contains(energy.support, drawn).all()
    for function in (lambda x: x, torch.square):
        mean = (weight * function(x)).sum()
        sd = (weight * (function(x) - mean).square()).sum().sqrt()
        assert abs(function(drawn).mean() - mean).item() < 4 * sd.item() / math.sqrt(n)


@pytest.mark.full
def test_a_mixed_support_has_the_moments_of_its_independent_parts():
    shares, size = td.Dirichlet(t(2.0, 1.0, 0.5)), td.Gamma(t(2.0), t(1.0))
    angles, shift = td.VonMises(t(3.0, 0.0), t(2.0, 1.0)), td.Normal(t(1.0), t(2.0))

    def function(x):
        parts = zip((shares, size, angles, shift), x.split([3, 1, 2, 1], 1), strict=True)
        return -sum(part.log_prob(some).reshape(len(x), -1).sum(1) for part, some in parts)

    energy = ce.as_energy(function, support=MIXED, event_shape=(7,))
    n = 4000
    drawn, trace = energy.sample(
        n, seed=0, dtype=F64, init=torch.cat([t(0.3, 0.3, 0.4, 2, 3, 0, 1)[None]] * n), trace=50, **{**SHORT, "steps": 100}
    )
    assert contains(MIXED, drawn).all()
    assert (drawn[:, 4:6].abs() <= math.pi).all()
    assert torch.equal(trace.points[-1], drawn)
    torch.testing.assert_close(trace.energies[-1], energy(drawn))
    turned = torch.cat([drawn[:, :4], drawn[:, 4:6].cos(), drawn[:, 4:6].sin(), drawn[:, 6:]], 1)
    concentration = [(torch.special.i1(k) / torch.special.i0(k)).item() for k in t(2.0, 1.0)]
    means = [*shares.mean.tolist(), 2.0, math.cos(3) * concentration[0], concentration[1], math.sin(3) * concentration[0], 0.0, 1.0]
    errors = turned.std(0) / math.sqrt(n)
    assert ((turned.mean(0) - t(*means)).abs() < 4 * errors).all()


@pytest.mark.slow
def test_directions_on_a_sphere_have_the_mean_of_their_density():
    n, kappa = 4000, 2.0
    energy = ce.as_energy(lambda x: -kappa * x[:, 2], support=sphere, event_shape=(3,))  # von Mises-Fisher
    drawn = energy.sample(n, seed=0, dtype=F64, sampler="hmc", step_size=0.5, leapfrogs=5, steps=40)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(n, dtype=F64))
    expected = t(0.0, 0.0, 1 / math.tanh(kappa) - 1 / kappa)
    assert ((drawn.mean(0) - expected).abs() < 4 * drawn.std(0) / math.sqrt(n)).all()


@pytest.mark.full
def test_four_modes_on_a_torus_have_their_weights():
    modes, weights = t(-2.5, 2.9, 0.6, -1.0).view(2, 2), t(0.4, 0.6)
    angles = td.MixtureSameFamily(td.Categorical(weights.expand(2, 2)), td.VonMises(modes, torch.full_like(modes, 6.0)))
    n = 4000
    drawn = ce.as_energy(angles).sample(n, seed=0, sampler="hmc", step_size=0.3, leapfrogs=8, steps=300)  # few chains change modes
    nearest = (drawn[:, :, None] - modes).cos().argmax(2)  # the modes of an angle are far apart
    counts = torch.bincount(2 * nearest[:, 0] + nearest[:, 1], minlength=4) / n
    shares = torch.outer(weights, weights).flatten()
    grid = (torch.arange(2000, dtype=F64) + 0.5) / 2000 * 2 * math.pi - math.pi
    density = angles.log_prob(grid[:, None].expand(-1, 2)).exp()
    basin = (grid[:, None, None] - modes).cos().argmax(2)
    own = torch.stack([(density[:, i] * (basin[:, i] == k)).sum() / density[:, i].sum() for i in (0, 1) for k in (0, 1)]).view(2, 2)
    shares = torch.outer(own[0], own[1]).flatten()
    assert ((counts - shares).abs() < 4 * (shares * (1 - shares) / n).sqrt()).all()


@pytest.mark.full
def test_log_z_integrates_over_the_support():
    for energy, expected in (
        (ce.as_energy(td.VonMises(t(0.0, 1.0), t(2.0, 1.0))), 0.0),
        (ce.as_energy(td.Dirichlet(t(2.0, 3.0, 1.0))), 0.0),
        (ce.as_energy(lambda x: -2.0 * x[:, 2], support=sphere, event_shape=(3,)), math.log(4 * math.pi * math.sinh(2) / 2)),
        (ce.as_energy(td.Gamma(t(3.0), t(1.0))) & ce.inside(constraints.less_than(3.0)), math.log(td.Gamma(3.0, 1.0).cdf(t(3.0)).item())),
    ):
        found = ce.log_z(energy, seed=0, dtype=F64, particles=512)
        assert abs(found.value - expected) < 4 * found.standard_error + 1e-3
