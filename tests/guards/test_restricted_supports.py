"""Distributions of others as energies, and `E.on(support)` in expressions: infinite outside, and the density inside."""

import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy.errors import ExpressionError, LiftError, ShapeError
from composable_energy.supports import circle
from tests.refusals import refusals

F64 = torch.float64
POINTS = torch.tensor([[1.0, 2.0, 3.0], [0.3, 0.2, 0.9], [0.5, -0.2, 0.1]], dtype=F64)


class Product(td.Distribution):
    """A density over vectors whose support, as a class of a user says it, may be that of numbers."""

    arg_constraints = {}

    def __init__(self, support, log_prob, batch=(), event=(3,)):
        self.limits, self.formula = support, log_prob
        super().__init__(torch.Size(batch), torch.Size(event), validate_args=False)

    @property
    def support(self):
        if self.limits is None:
            raise NotImplementedError
        return self.limits

    def log_prob(self, value):
        return self.formula(value)


def normal(x):
    return td.Normal(0.0, 1.0).log_prob(x).sum(-1)


def exponential(x):
    return -x.sum(-1)


class LogNormal(td.TransformedDistribution):
    def __init__(self, base):
        super().__init__(base, [td.ExpTransform()])


class Tempered(td.Independent):
    def log_prob(self, value):
        return 2 * super().log_prob(value)


BOX = constraints.interval(torch.zeros(3, dtype=F64), torch.full((3,), 2.0, dtype=F64))
STANDARD = td.Normal(torch.zeros(3, dtype=F64), 1.0)
LOGS = td.LogNormal(torch.zeros(3, dtype=F64), 1.0)
PER_POINT = {  # a distribution, its log density inside, and where it is positive
    "real": (Product(constraints.real, normal), normal, lambda x: x == x),
    "positive": (Product(constraints.positive, exponential), exponential, lambda x: x > 0),
    "box": (Product(BOX, exponential), exponential, lambda x: (x > 0) & (x < 2)),
    "stack": (
        Product(constraints.stack([constraints.positive, constraints.real, constraints.positive], -1), exponential),
        exponential,
        lambda x: x[:, [0, 2]] > 0,
    ),
    "cat along an axis of a point": (
        Product(constraints.cat([constraints.positive, constraints.real], 0, [1, 2]), exponential),
        exponential,
        lambda x: torch.stack([x[:, 0] > 0, x[:, 1] == x[:, 1], x[:, 2] == x[:, 2]], 1),
    ),
    "subclass of a transformed one": (LogNormal(STANDARD), lambda x: LOGS.log_prob(x).sum(-1), lambda x: x > 0),
    "mixture of subclasses": (
        td.MixtureSameFamily(td.Categorical(torch.ones(2)), LogNormal(td.Independent(td.Normal(torch.zeros(2, 3, dtype=F64), 1.0), 1))),
        lambda x: LOGS.log_prob(x).sum(-1),
        lambda x: x > 0,
    ),
    "subclass with a log density of its own": (Tempered(LOGS, 1), lambda x: 2 * LOGS.log_prob(x).sum(-1), lambda x: x > 0),
    "simplexes": (
        Product(constraints.simplex, lambda x: x.log().sum((-1, -2)), event=(1, 3)),
        lambda x: x.log().sum((-1, -2)),
        lambda x: (x > 0) & ((x.sum(-1, keepdim=True) - 1).abs() < 1e-6),
    ),
}


@pytest.mark.parametrize("name", PER_POINT)
def test_a_distribution_gives_one_energy_for_each_point(name):
    distribution, formula, positive = PER_POINT[name]
    energy = ce.as_energy(distribution)
    points = POINTS.reshape(3, *energy.event_shape)
    if name == "simplexes":
        points = torch.cat([points, points.abs() / points.abs().sum(-1, keepdim=True)])
    inside = positive(points).flatten(1).all(1)
    safe = torch.where(inside.reshape(-1, *[1] * (points.ndim - 1)), points, torch.full_like(points, 1 / 3))
    torch.testing.assert_close(energy(points), torch.where(inside, -formula(safe), math.inf))
    assert energy.with_gradient(points)[1].isfinite().all()
    torch.testing.assert_close(energy(points[:1]), energy(points)[:1])


def test_log_densities_of_another_shape_are_refused():
    for wrong in (lambda x: -x, lambda x: -x.sum(-1, keepdim=True), lambda x: -x.sum()):
        with pytest.raises(ShapeError, match="one number for all axes of the event_shape"):
            ce.as_energy(Product(constraints.positive, wrong))(POINTS[:2])


test_supports_that_do_not_fit_a_distribution_are_refused = refusals(
    (None, (3,), None),
    (constraints.simplex, (), None),
    (constraints.cat([constraints.positive, constraints.real], 0, [1, 1]), (3,), None),
    (constraints.nonnegative_integer, (3,), None),
    call=lambda support, event: ce.as_energy(Product(support, exponential, event=event)),
    error=LiftError,
)


ZERO, ONE = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
A = ce.as_energy(Normal(ZERO, ONE), name="A")
B = ce.as_energy(Normal(2 * ONE, 2 * ONE), name="B")
UNIT = constraints.interval(0.0, 1.0)


def quadratic(x):
    return x.square() / 2


def of_b(x):
    return (x - 2).square() / 8


EXPRESSIONS = {  # an expression, its energy up to a constant, and the ends of its support
    "weight": (2 * A.on(UNIT), lambda x: 2 * quadratic(x), 0, 1),
    "negative weight": (-3 * A.on(UNIT), lambda x: -3 * quadratic(x), 0, 1),
    "conjunction of two": (A.on(UNIT) & B.on(constraints.interval(0.5, 3.0)), lambda x: quadratic(x) + of_b(x), 0.5, 1),
    "mixture": (
        ce.any_of(3 * A.on(UNIT), B.on(UNIT), weights=[1.0, 2.0]),
        lambda x: (
            -torch.logsumexp(
                torch.stack([-3 * quadratic(x) - 1.5 * math.log(2 * math.pi), math.log(2) - of_b(x) - 0.5 * math.log(8 * math.pi)]), 0
            )
        ),
        0,
        1,
    ),
    "ratio by a density on a box": (A - B.on(UNIT), lambda x: quadratic(x) - of_b(x), 0, 1),
    "sharpened relative": (B.on(UNIT).relative_to(A).sharpened(2.0), lambda x: 2 * of_b(x) - quadratic(x), 0, 1),
    "over a base on a box": (
        B.relative_to(A.on(UNIT)) & ce.as_energy(Normal(ONE, ONE)).relative_to(A.on(UNIT)),
        lambda x: of_b(x) + quadratic(x - 1) - quadratic(x),
        0,
        1,
    ),
    "twice": (
        2 * (A.on(constraints.interval(-1.0, 1.0)) & B.on(constraints.positive)).on(UNIT),
        lambda x: 2 * (quadratic(x) + of_b(x)),
        0,
        1,
    ),
    "mixture without a known support": (
        2 * ce.any_of(A.on(UNIT), B.on(constraints.interval(2.0, 3.0)), weights=[1.0, 1.0]).on(UNIT),
        lambda x: 2 * quadratic(x),
        0,
        1,
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_has_the_density_and_the_support_of_its_restricted_terms(name):
    energy, formula, low, high = EXPRESSIONS[name]
    assert (energy.support.lower_bound, energy.support.upper_bound) == (low, high)
    assert energy(torch.tensor([[low - 0.5], [high + 0.5]], dtype=F64)).isinf().all()
    grid = torch.linspace(low, high, 103, dtype=F64)[1:-1]
    assert (energy(grid[:, None]) - formula(grid)).std() < 1e-9  # they differ by a constant


def test_supports_that_do_not_join_are_refused():
    pull = ce.as_energy(lambda x: -x.cos().sum(1), event_shape=(2,))
    for build in (lambda a, b: 2 * a & b, lambda a, b: a | 0.5 * b, lambda a, b: a - b):
        with pytest.raises(ExpressionError, match="lives on"):
            build(pull.on(circle), pull.on(constraints.simplex)).sample((5, 2), seed=0)
    with pytest.raises(ExpressionError, match="supports of its terms have none in common"):
        (2 * A.on(UNIT) & B.on(constraints.greater_than(3.0))).sample((5, 1), seed=0)


@pytest.mark.slow
def test_a_deep_expression_of_restrictions_has_a_support():
    energy = A
    for _ in range(150):
        energy = (energy & energy).on(constraints.positive)
    assert energy.support is constraints.positive
