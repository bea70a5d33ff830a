"""Energies of distributions: values, gradients and supports."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.supports import is_full
from tests.distribution_values import BOTH, BOUNDED, F64, inside_points, t, total


@pytest.mark.slow
@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_energy_and_gradient_are_those_of_log_prob_inside_and_infinity_and_zero_outside(distribution, seed, scale):
    energy = ce.as_energy(distribution)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inside = inside_points(distribution)
        moved = inside + scale * torch.randn(inside.shape, dtype=F64)
    point = inside.clone().requires_grad_()
    expected = total(distribution.log_prob(point))
    energies, gradients = energy.with_gradient(inside)
    torch.testing.assert_close(energies, expected.detach())
    slope = torch.autograd.grad(expected.sum(), point)[0] if expected.requires_grad else torch.zeros_like(point)  # flat: uniform
    torch.testing.assert_close(gradients, slope)

    energies, gradients = energy.with_gradient(moved)
    outside = energies == math.inf
    assert not energies.isnan().any()
    assert gradients.isfinite().all()
    assert (gradients[outside] == 0).all()
    if isinstance(distribution, (td.Gamma, td.LogNormal, td.Weibull, td.Kumaraswamy, td.Beta)):
        assert torch.equal(~outside, distribution.support.check(moved).all(1))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", BOUNDED.values(), ids=BOUNDED)
def test_a_mixture_has_the_gradient_of_the_other_branch_outside_the_support(distribution):
    energy = ce.as_energy(distribution)
    wide = ce.as_energy(td.Normal(torch.zeros(energy.event_shape, dtype=F64), 3.0))
    outside = torch.full((2, *energy.event_shape), -3.0, dtype=F64)
    assert (energy(outside) == math.inf).all()
    energies, gradients = (energy | wide).with_gradient(outside)
    torch.testing.assert_close(energies, wide(outside))
    torch.testing.assert_close(gradients, wide.with_gradient(outside)[1])
    if is_full(energy.support):  # on a simplex, or for matrices, the mixture has no support
        assert (energy | wide).sample(5, steps=3, seed=0).isfinite().all()
    else:
        with pytest.raises(ExpressionError, match="neither support includes the other"):
            (energy | wide).sample(5, steps=3, seed=0)


@BOTH
def test_a_point_that_is_nan_has_the_energy_nan(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution, 3)
    if points.ndim == 1:
        points[1] = math.nan
    else:
        points.flatten(1)[1, 0] = math.nan
    assert energy(points).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["Beta", "Chi2", "Exponential", "Gamma", "Kumaraswamy", "Uniform", "Dirichlet"])
def test_a_boundary_without_density_has_gradient_zero(name):
    energy = ce.as_energy(BOUNDED[name])
    edge = t(0.0, 1.0).expand(1, 2) if name != "Dirichlet" else t(0.0, 0.5, 0.5).unsqueeze(0)
    energies, gradients = energy.with_gradient(edge)
    if energies == math.inf:
        assert (gradients == 0).all()
    wide = ce.as_energy(td.Normal(torch.zeros_like(edge[0]), 1.0))
    if energies > -math.inf:
        assert (energy | wide).with_gradient(edge)[1].isfinite().all()


@pytest.mark.skipif(not hasattr(td, "GeneralizedPareto"), reason="needs a newer torch")
def test_a_class_without_known_arguments_is_safe_too():
    distribution = td.GeneralizedPareto(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.2]))
    energies, gradients = ce.as_energy(distribution).with_gradient(torch.tensor([[-1.0, 2.0], [1.0, 2.0]]))
    torch.testing.assert_close(energies, torch.stack([torch.tensor(math.inf), -distribution.log_prob(torch.tensor([1.0, 2.0])).sum()]))
    assert (gradients[0] == 0).all()
    assert (gradients[1] != 0).all()


def test_components_of_a_mixture_may_have_different_supports():
    uniform = td.Uniform(t(0.0, 2.0), t(1.0, 3.0))
    energy = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.25, 0.75)), uniform))
    torch.testing.assert_close(energy(t(0.5, 1.5, 2.5)), t(-math.log(0.25), math.inf, -math.log(0.75)))
    pareto = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.5, 0.5)), td.Pareto(t(1.0, 3.0), t(1.0, 1.0))))
    torch.testing.assert_close(pareto(t(2.0)), -t(0.5 * 1.0 / 4.0).log())
