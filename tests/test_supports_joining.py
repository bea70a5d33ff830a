"""Supports of expressions: intersections and unions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.supports import circle, same_support
from tests.distribution_values import F64, t
from tests.support_values import SHORT


def test_expressions_keep_and_join_the_supports_of_their_terms():
    beta, gamma = ce.as_energy(td.Beta(t(2.0), t(2.0))), ce.as_energy(td.Gamma(t(2.0), t(1.0)))
    line = ce.as_energy(td.Normal(t(0.0), t(1.0)))
    for kept in (2 * beta, beta / 3, beta.sharpened(2), beta.relative_to(line), beta & line, beta & gamma, line & beta, beta - line):
        assert same_support(kept.support, constraints.unit_interval)
    assert same_support((beta | gamma).support, constraints.positive)
    assert (beta | line).support is None
    assert ce.negate(beta, mode="contrast").support is None  # "not in (0, 1)" also holds at 2
    assert same_support((ce.negate(beta, mode="contrast") & gamma).support, constraints.positive)
    angles = ce.as_energy(td.VonMises(t(0.0), t(1.0)))
    assert ce.negate(angles, mode="contrast").support is circle
    assert gamma.pull_back(torch.nn.Softplus()).support is None


@pytest.mark.slow
def test_a_product_of_disjoint_supports_is_a_contradiction():
    low, high = ce.as_energy(td.Uniform(t(0.0), t(1.0))), ce.as_energy(td.Uniform(t(2.0), t(3.0)))
    with pytest.raises(ContradictionError, match="supports"):
        (low & high).sample(5, seed=0)
    assert same_support(((low & high) | high).support, constraints.interval(2.0, 3.0))
    with pytest.raises(ExpressionError, match="neither support includes the other"):
        (low | high).sample(5, seed=0)
    drawn = (low | high).on(constraints.interval(0.0, 3.0)).sample(20, seed=0, init=torch.full((20, 1), 2.5, dtype=F64), **SHORT)
    assert (low | high)(drawn).isfinite().all()


def test_bounds_follow_moves():
    walls = ce.inside(constraints.interval(t(0.0), t(1.0))).to(torch.float32)
    assert walls.support.lower_bound.dtype == torch.float32
