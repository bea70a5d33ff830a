"""`E.on(support)` inside of expressions: the support holds under every node, and draws follow the density on it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import Dirichlet, Gamma, Normal, constraints

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.supports import circle

F64 = torch.float64
ZERO, ONE = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
A = ce.as_energy(Normal(ZERO, ONE), name="A")
B = ce.as_energy(Normal(2 * ONE, 2 * ONE), name="B")
BOX = constraints.interval(0.0, 1.0)
HMC = {"sampler": "hmc", "step_size": 0.3, "leapfrogs": 8, "steps": 40, "allow_improper": True}


def quadratic(x):
    return x.square() / 2


def of_b(x):
    return (x - 2).square() / 8


EXPRESSIONS = {  # an expression, its energy up to a constant, and the ends of its support
    "weight": (2 * A.on(BOX), lambda x: 2 * quadratic(x), 0, 1),
    "negative weight": (-3 * A.on(BOX), lambda x: -3 * quadratic(x), 0, 1),
    "conjunction of two": (A.on(BOX) & B.on(constraints.interval(0.5, 3.0)), lambda x: quadratic(x) + of_b(x), 0.5, 1),
    "mixture": (
        ce.any_of(3 * A.on(BOX), B.on(BOX), weights=[1.0, 2.0]),
        lambda x: (
            -torch.logsumexp(
                torch.stack([-3 * quadratic(x) - 1.5 * math.log(2 * math.pi), math.log(2) - of_b(x) - 0.5 * math.log(8 * math.pi)]), 0
            )
        ),
        0,
        1,
    ),
    "ratio": (A.on(BOX) - B, lambda x: quadratic(x) - of_b(x), 0, 1),
    "ratio by a density on a box": (A - B.on(BOX), lambda x: quadratic(x) - of_b(x), 0, 1),
    "sharpened": (A.on(BOX).sharpened(3.0), lambda x: 3 * quadratic(x), 0, 1),
    "sharpened relative": (B.on(BOX).relative_to(A).sharpened(2.0), lambda x: 2 * of_b(x) - quadratic(x), 0, 1),
    "over a base on a box": (
        B.relative_to(A.on(BOX)) & ce.as_energy(Normal(ONE, ONE)).relative_to(A.on(BOX)),
        lambda x: of_b(x) + quadratic(x - 1) - quadratic(x),
        0,
        1,
    ),
    "twice": (
        2 * (A.on(constraints.interval(-1.0, 1.0)) & B.on(constraints.positive)).on(BOX),
        lambda x: 2 * (quadratic(x) + of_b(x)),
        0,
        1,
    ),
    "mixture without a known support": (
        2 * ce.any_of(A.on(BOX), B.on(constraints.interval(2.0, 3.0)), weights=[1.0, 1.0]).on(BOX),
        lambda x: 2 * quadratic(x),
        0,
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_draws_follow_the_density_on_the_support(name):
    energy, formula, low, high = EXPRESSIONS[name]
    grid = torch.linspace(low, high, 20_001, dtype=F64)
    density = torch.softmax(-formula(grid), 0)
    mean = (density * grid).sum().item()
    deviation = math.sqrt((density * (grid - mean) ** 2).sum().item())
    draws = energy.sample((2000, 1), seed=5, **HMC)
    assert (draws > low).all() and (draws < high).all()
    assert abs(draws.mean().item() - mean) < 4.5 * deviation / math.sqrt(2000)
    assert abs(draws.std().item() / deviation - 1) < 0.1


def test_nodes_have_the_support_of_a_restricted_term():
    for energy, _, low, high in EXPRESSIONS.values():
        assert (energy.support.lower_bound, energy.support.upper_bound) == (low, high), energy
        outside = torch.tensor([[low - 0.5], [high + 0.5]], dtype=F64)
        assert energy(outside).isinf().all()


@pytest.mark.full
def test_conditions_copies_and_files_keep_the_support_of_a_restricted_term(tmp_path):
    shifted = ce.as_energy(lambda x, y: (x[:, 0] - y).square() / 2, event_shape=(1,)).on(BOX)
    assert (2 * shifted.given(y=3.0)).support is not None and (shifted & A).given(y=3.0).support is not None
    energy = 2 * A.on(constraints.interval(ZERO, ONE)) & B
    energy.save(tmp_path / "energy")
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy)), ce.load(tmp_path / "energy"), copy.deepcopy(energy).float()):
        dtype = next(iter(other.support.lower_bound)).dtype
        assert (other.sample((50, 1), seed=1, dtype=dtype, **HMC) < 1).all()


@pytest.mark.full
def test_a_power_of_an_energy_on_the_circle_stays_on_the_circle():
    pull = ce.as_energy(lambda x: -0.7 * x.cos().sum(1), event_shape=(1,)).on(circle)
    for energy in (2 * pull, pull & pull, pull.sharpened(2.0), (pull & pull).on(circle)):
        draws = energy.sample((2000, 1), seed=3, dtype=F64, **{**HMC, "step_size": 1.5})
        assert (draws.abs() <= math.pi).all()
        kappa = torch.tensor(1.4, dtype=F64)  # of the von Mises density; the mean cosine is I_1 / I_0
        expected = (torch.special.i1(kappa) / torch.special.i0(kappa)).item()
        assert abs(draws.cos().mean().item() - expected) < 4.5 * draws.cos().std().item() / math.sqrt(2000)


@pytest.mark.full
def test_powers_of_densities_on_a_simplex_and_a_half_line_are_of_their_families():
    shares = ce.as_energy(lambda x: -(x[:, 0].log() + 2 * x[:, 1].log()), event_shape=(3,)).on(constraints.simplex)
    draws = (2 * shares & shares).sample((2000, 3), seed=2, dtype=F64, **HMC)
    expected = Dirichlet(torch.tensor([4.0, 7.0, 1.0], dtype=F64))
    assert ((draws.mean(0) - expected.mean).abs() < 4.5 * (expected.variance / 2000).sqrt()).all()
    rate = ce.as_energy(lambda x: (x - x.log())[:, 0], event_shape=(1,)).on(constraints.positive)
    draws = (rate - ce.as_energy(Gamma(ONE, 0.5 * ONE))).sample((2000, 1), seed=2, dtype=F64, **HMC)
    assert abs(draws.mean().item() - 4.0) < 4.5 * math.sqrt(8 / 2000)  # Gamma(2, 1 - .5)


def test_supports_that_do_not_join_are_refused():
    pull = ce.as_energy(lambda x: -x.cos().sum(1), event_shape=(2,))
    for build in (lambda a, b: 2 * a & b, lambda a, b: a | 0.5 * b, lambda a, b: a - b):
        with pytest.raises(ExpressionError, match="lives on"):
            build(pull.on(circle), pull.on(constraints.simplex)).sample((5, 2), seed=0)
    with pytest.raises(ExpressionError, match="supports of its terms have none in common"):
        (2 * A.on(BOX) & B.on(constraints.greater_than(3.0))).sample((5, 1), seed=0)


@pytest.mark.slow
def test_a_deep_expression_of_restrictions_has_a_support():
    energy = A
    for _ in range(150):
        energy = (energy & energy).on(constraints.positive)
    assert energy.support is constraints.positive
