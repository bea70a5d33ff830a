"""Distributions of others as energies: one number for each point, infinite outside the support, or a typed refusal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.errors import LiftError, ShapeError

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


@pytest.mark.full
def test_draws_of_such_distributions_stay_in_the_support():
    options = {"sampler": "hmc", "step_size": 0.5, "leapfrogs": 6, "steps": 30}
    draws = ce.as_energy(Product(constraints.positive, exponential)).sample((1000, 3), seed=4, dtype=F64, **options)
    assert (draws > 0).all() and abs(draws.mean().item() - 1) < 4.5 / math.sqrt(3000)
    draws = ce.as_energy(LogNormal(STANDARD)).sample((1000, 3), seed=4, **options)
    assert (draws > 0).all() and abs(draws.log().mean().item()) < 4.5 / math.sqrt(3000)
    logistic = td.TransformedDistribution(td.Uniform(torch.zeros(1, dtype=F64), 1.0), [td.SigmoidTransform().inv])
    assert ce.as_energy(logistic).support is None


def test_log_densities_of_another_shape_are_refused():
    for wrong in (lambda x: -x, lambda x: -x.sum(-1, keepdim=True), lambda x: -x.sum()):
        with pytest.raises(ShapeError, match="one number for all axes of the event_shape"):
            ce.as_energy(Product(constraints.positive, wrong))(POINTS[:2])


@pytest.mark.parametrize(
    ("support", "event"),
    [
        (None, (3,)),
        (constraints.simplex, ()),
        (constraints.cat([constraints.positive, constraints.real], 0, [1, 1]), (3,)),
        (constraints.nonnegative_integer, (3,)),
    ],
)
def test_supports_that_do_not_fit_a_distribution_are_refused(support, event):
    with pytest.raises(LiftError):
        ce.as_energy(Product(support, exponential, event=event))
