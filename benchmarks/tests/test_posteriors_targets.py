"""The targets of the suite: batched, differentiable, and with moments that quadrature confirms."""

from dataclasses import replace

import pytest
import torch

from benchmarks.posteriors.hierarchies import counts_data, gp_data, mixture_data, populations, runge_kutta
from benchmarks.posteriors.regressions import horseshoe_data, logistic_data, poisson_data
from benchmarks.posteriors.shapes import banana, far_modes, funnel, torus
from benchmarks.posteriors.targets import TARGETS, get_target

NAMES = list(TARGETS)


def points(target, count=8, scale=0.5):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(count, target.dimension, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_finite_in_both_precisions(name):
    target = get_target(name)
    x = points(target)
    energy = target.energy(x)
    assert target.name == name and energy.shape == (8,) and energy.dtype == torch.float64 and energy.isfinite().all()
    single = target.energy(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), energy, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_points_do_not_depend_on_their_batch(name):
    target = get_target(name)
    x = points(target)
    torch.testing.assert_close(target.energy(x[3:4]), target.energy(x)[3:4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name):
    target = get_target(name)
    x = points(target, 2, 0.3) + torch.tensor(target.origin or [0.0] * target.dimension, dtype=torch.float64)
    assert torch.autograd.gradcheck(target.energy, x.requires_grad_(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_statistic_has_a_name(name):
    target = get_target(name)
    values = target.statistics(points(target))
    assert values.shape == (8, len(target.names)) and values.isfinite().all()
    assert len(set(target.names)) == len(target.names)


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="There is no target 'seven-schools'"):
        get_target("seven-schools")


@pytest.mark.parametrize("data", [logistic_data, poisson_data, horseshoe_data, gp_data, mixture_data, counts_data, populations])
def test_data_are_the_same_in_each_call(data):
    first, second = data(), data()
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    assert all((one == other).all() for one, other in pairs)


def test_neighbouring_columns_are_correlated():
    features, _ = poisson_data()
    correlation = torch.corrcoef(torch.from_numpy(features).T).diagonal(1)
    assert correlation.min() > 0.9 and abs(features.mean(0)).max() < 1e-12 and abs(features.std(0) - 1).max() < 1e-12


def test_runge_kutta_solves_a_linear_equation():
    path = runge_kutta(lambda y: -0.5 * y, torch.ones(1, dtype=torch.float64))
    times = 1.2 * torch.arange(1, 11, dtype=torch.float64)
    assert len(path) == 10
    torch.testing.assert_close(torch.cat(path), (-0.5 * times).exp(), rtol=1e-4, atol=0)


def quadrature(target, lines):
    """Returns means and sds of the statistics by a sum over a grid."""
    grid = torch.cartesian_prod(*lines)
    share = target.log_density(grid).softmax(0)[:, None]
    values = target.statistics(grid)
    mean = (share * values).sum(0)
    return mean, (share * (values - mean).square()).sum(0).sqrt()


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        (banana(1, 0.5), [torch.linspace(-6, 6, 601), torch.linspace(-3, 40, 1501)]),
        (far_modes(), [torch.linspace(-12, 12, 241), torch.linspace(-12, 12, 242)]),
    ],
    ids=["banana", "modes"],
)
def test_closed_forms_agree_with_quadrature(target, lines):
    mean, sd = quadrature(target, [line.double() for line in lines])
    known = target.closed_form()
    torch.testing.assert_close(mean, known.mean, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(sd, known.sd, rtol=2e-3, atol=0)


@pytest.mark.slow
def test_the_moments_of_the_torus_agree_with_quadrature_in_its_four_coordinates():
    target, known = torus(), torus().closed_form()
    both = replace(target, statistics=lambda x: torch.cat([target.statistics(x), x], 1))
    mean, sd = quadrature(both, [torch.linspace(-1.9, 1.9, 24, dtype=torch.float64)] * 4)
    k = len(target.names)
    torch.testing.assert_close(mean[:k], known.mean, rtol=0, atol=8e-3)
    torch.testing.assert_close(sd[:k], known.sd, rtol=2e-2, atol=0)
    torch.testing.assert_close(mean[k:], known.center, rtol=0, atol=2e-3)
    torch.testing.assert_close(sd[k:], known.scale, rtol=2e-3, atol=0)


def test_draws_of_the_funnel_have_its_moments():
    generator = torch.Generator().manual_seed(0)
    v = 3 * torch.randn(100_000, 1, dtype=torch.float64, generator=generator)
    x = torch.cat([v, (v / 2).exp() * torch.randn(100_000, 9, dtype=torch.float64, generator=generator)], 1)
    values, known = funnel().statistics(x), funnel().closed_form()
    assert ((values.mean(0) - known.mean).abs() < 5 * known.sd / 100_000**0.5).all()
    assert ((values.std(0) / known.sd - 1).abs() < 0.02).all()
    density = torch.distributions.Normal(0.0, 3.0).log_prob(v[:, 0])
    density = density + torch.distributions.Normal(0.0, (v / 2).exp()).log_prob(x[:, 1:]).sum(1)
    difference = density - funnel().log_density(x)
    torch.testing.assert_close(difference, difference[:1].expand(len(x)))


def test_both_parametrisations_of_eight_schools_are_one_density():
    free, centered = get_target("schools"), get_target("schools-centered")
    x = points(free)
    mapped = centered.from_reference(x)
    change = 8 * x[:, 1]  # the log-determinant of the map
    difference = free.log_density(x) - centered.log_density(mapped) - change
    torch.testing.assert_close(difference, difference[:1].expand(8))
    torch.testing.assert_close(free.statistics(x), centered.statistics(mapped))
