"""Supports of expressions: intersections and unions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.support_sets import includes, intersect, same_support, unite
from composable_energy.supports import circle, contains, empty, format_support, sphere
from tests.distribution_values import F64, t
from tests.support_values import SHORT

ENDS = st.tuples(st.integers(-3, 3), st.integers(1, 4)).map(lambda pair: constraints.interval(float(pair[0]), float(sum(pair))))
LINES = st.one_of(ENDS, st.sampled_from([None, constraints.positive, constraints.less_than(1.0)]))
GRID = torch.linspace(-4, 8, 49, dtype=F64)[:, None] + 0.01


@settings(max_examples=100, deadline=None)
@given(a=LINES, b=LINES)
def test_intervals_join_as_their_points_do(a, b):
    inside = contains(a, GRID), contains(b, GRID)
    assert torch.equal(contains(intersect([("A", a), ("B", b)]), GRID), inside[0] & inside[1])
    assert same_support(intersect([("A", a), ("B", b)]), intersect([("B", b), ("A", a)]))
    assert includes(a, intersect([("A", a), ("B", b)]))
    try:
        union = unite([("A", a), ("B", b)], one_number=True)
    except ExpressionError:
        assert intersect([("A", a), ("B", b)]) is empty
    else:
        assert torch.equal(contains(union, GRID), inside[0] | inside[1])


def test_parts_join_one_by_one_and_ranges_hold_what_they_include():
    def cat(*parts):
        return constraints.cat(list(parts), lengths=[1, 2])

    both = intersect([("A", cat(constraints.positive, circle)), ("B", cat(constraints.less_than(3.0), circle))])
    assert format_support(both) == "cat(interval(0, 3), circle)"
    half = intersect([("A", cat(constraints.positive, constraints.less_than(3.0))), ("B", constraints.positive)])
    assert format_support(half) == "cat(positive, interval(0, 3))"
    assert intersect([("A", cat(constraints.positive, constraints.real)), ("B", constraints.positive)]) is constraints.positive
    assert intersect([("A", constraints.positive), ("B", constraints.simplex)]) is constraints.simplex
    assert intersect([("A", constraints.interval(-2, 2)), ("B", sphere)]) is sphere
    assert format_support(intersect([("A", circle), ("B", constraints.positive)])) == "interval(0, 3.142)"


def test_supports_without_a_known_join_name_both():
    simplex, angles = (
        ce.as_energy(td.Dirichlet(t(1.0, 2.0)), name="shares"),
        ce.as_energy(td.VonMises(t(0.0, 0.0), t(1.0, 1.0)), name="angles"),
    )
    with pytest.raises(ExpressionError, match=r"shares lives on simplex and angles on circle"):
        (simplex & angles).sample(5, seed=0)
    with pytest.raises(ExpressionError, match=r"shares lives on simplex and angles on circle"):
        (simplex | angles).sample(5, seed=0)
    line = ce.as_energy(td.Normal(t(0.0, 0.0), 1.0))
    with pytest.raises(ExpressionError, match=r"angles lives on circle and Normal on all of R\^n"):
        (angles | line).sample(5, seed=0)
    assert (simplex & line).support is constraints.simplex


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


def test_bounds_follow_learnable_parameters_and_moves():
    high = torch.nn.Parameter(t(1.0))
    energy = ce.as_energy(td.Uniform(torch.zeros(1, dtype=F64), high)) & ce.inside(constraints.positive)
    with torch.no_grad():
        high.fill_(4.0)
    assert same_support(energy.support, constraints.interval(0.0, 4.0))
    walls = ce.inside(constraints.interval(t(0.0), t(1.0))).to(torch.float32)
    assert walls.support.lower_bound.dtype == torch.float32
