"""Infinite energies: expressions are infinite or finite, never NaN, and so are their gradients."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import composable_energy as ce
from tests.factories import expressions

SIZE = 1.0


class Box(ce.Energy):
    """A Gaussian of a mean inside a square around 0, infinite outside; its gradient is finite everywhere."""

    def __init__(self, mean: float = 0.0, size: float = SIZE) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.mean, self.size = mean, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(1) < self.size, (x - self.mean).square().sum(1) / 2, torch.inf)


class Free(Box):
    """The same Gaussian everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / 2


def linear(outputs: int) -> nn.Linear:
    network = nn.Linear(2, outputs, dtype=torch.float64)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(network.bias)
    return network


U, WIDE, A, B, FREE = Box(), Box(0.0, 2.0), Box(0.5), Box(-0.5), Free(0.2)
POINTS = torch.tensor([[0.1, -0.4], [0.7, 0.3], [1.5, 0.2], [-0.3, -1.7], [2.5, 0.1], [-9.0, 9.0]], dtype=torch.float64)
INSIDE, OUTSIDE = slice(0, 2), slice(2, 6)


def both(energy: ce.Energy) -> tuple[Tensor, Tensor]:
    energies, gradient = energy.with_gradient(POINTS)
    torch.testing.assert_close(energy(POINTS), energies)
    assert not energies.isnan().any(), energy
    assert gradient.isfinite().all(), energy
    return energies, gradient


def all_infinite(energy: ce.Energy) -> bool:
    return bool((both(energy)[0][OUTSIDE] == math.inf).all())


def test_relative_energies_over_a_bounded_base_are_infinite_where_it_is():
    left, right = A.relative_to(U), B.relative_to(U)
    energies, gradient = both(left & right)
    torch.testing.assert_close(energies[INSIDE], (A(POINTS) + B(POINTS) - U(POINTS))[INSIDE])
    torch.testing.assert_close(gradient[INSIDE], POINTS[INSIDE])
    assert all_infinite(left & right) and not left.evidence(POINTS)[OUTSIDE].any()


@pytest.mark.parametrize("weight", [0.0, torch.tensor(-0.0), nn.Parameter(torch.tensor(0.0))], ids=str)
def test_weight_zero_keeps_the_support(weight):
    for E in (weight * U, U.sharpened(weight), weight * A.relative_to(U), A.relative_to(U).sharpened(weight) & U):
        assert all_infinite(E)
    assert not (weight * U)(POINTS)[INSIDE].any()


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_a_learnable_weight_has_a_gradient_from_where_energies_are_finite(value):
    weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    energies = (weight * U)(POINTS)
    assert (energies[OUTSIDE] == math.copysign(math.inf, value)).all()
    beside = (FREE & U.sharpened(weight))(POINTS)
    for finite in (energies[INSIDE], torch.where(beside.isinf(), 0.0, beside)):
        torch.testing.assert_close(torch.autograd.grad(finite.sum(), weight)[0], U(POINTS)[INSIDE].sum())
    temperature = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    assert torch.autograd.grad((U / temperature)(POINTS).sum(), temperature)[0].isfinite()


def test_differences_mixtures_and_complements_keep_the_right_support():
    red = ce.ClassifierEnergy(linear(2), 0, U, labels=2)
    for E in (A & U, U & (WIDE - U), U & ce.negate(U, level=0.0), -1 * U & A, A | B, ~FREE.relative_to(U), ~red):
        assert all_infinite(E)
    assert all_infinite(ce.negate(red, weight=torch.tensor(0.5)))
    assert both(A - WIDE)[0][OUTSIDE].tolist() == [math.inf] * 4
    energies = both(WIDE - U)[0]
    assert energies[INSIDE].isfinite().all() and energies[OUTSIDE].tolist() == [-math.inf, -math.inf, math.inf, math.inf]
    assert not both(A | B)[1][OUTSIDE].any()
    energies, gradient = both(U | FREE)
    torch.testing.assert_close(energies[OUTSIDE], FREE(POINTS)[OUTSIDE])
    torch.testing.assert_close(gradient[OUTSIDE], FREE.with_gradient(POINTS)[1][OUTSIDE])
    torch.testing.assert_close(both(~U.relative_to(FREE))[0][OUTSIDE], FREE(POINTS)[OUTSIDE])


def test_a_broken_point_stays_broken():
    x = torch.full((1, 2), math.nan)
    for E in (
        0.0 * FREE,
        torch.tensor(0.0) * FREE,
        FREE | FREE.sharpened(2.0),
        FREE - FREE.sharpened(0.5),
        FREE & ce.negate(FREE, level=1.0),
        FREE.relative_to(U),
    ):
        assert E(x).isnan().all(), E


LOGITS = linear(3)
RED, GREEN = (ce.ClassifierEnergy(LOGITS, k, U, labels=3) for k in range(2))
LEAVES = {
    "box": U,
    "wide": WIDE,
    "moved": A,
    "free": FREE,
    "red": RED,
    "green": GREEN,
    "box relative to itself": A.relative_to(U),
    "free relative to the box": FREE.relative_to(U),
    "box relative to free": U.relative_to(FREE),
    "box relative to wide": U.relative_to(WIDE),
    "wide relative to the box": WIDE.relative_to(U),
    "weight 0": 0.0 * U,
    "power": ce.negate(U, "power"),
    "negative weight": -0.7 * WIDE & U,
}


@pytest.mark.full
@given(expressions(6, LEAVES))
@settings(max_examples=200, deadline=None)
def test_no_expression_of_bounded_energies_is_nan(energy):
    assume(not energy.unsatisfiable)  # it has no energy, and raises
    both(energy)
    assert not energy.evidence(POINTS).isnan().any()
