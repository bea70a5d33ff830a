"""Events with weights in a conjunction: the joint probability stays, whatever the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ContradictionError
from composable_energy.events import ClassifierEnergy

BASE = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(1,), name="base")


class Head(nn.Module):
    """One variable with four values, so that events of it depend on each other: both, a alone, b alone, neither."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([3 - 2 * (x - 2).square(), 2 * x, -2 * x, torch.ones_like(x)], 1)


HEAD = Head()
A, B = (ClassifierEnergy(HEAD, values, BASE, labels=4, name=name) for name, values in (("a", [0, 1]), ("b", [0, 2])))
X = torch.linspace(-4, 4, 2001, dtype=torch.double)[:, None]


def loss(*values: int) -> Tensor:
    """Returns -log P(one of the values | x)."""
    return -HEAD(X).softmax(1)[:, list(values)].sum(1).log()


BOTH, ONLY_A, EITHER_A, EITHER_B = loss(0), loss(1), loss(0, 1), loss(0, 2)


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (2 * A & B, BOTH + EITHER_A),
        (A.sharpened(2) & ~B, ONLY_A + EITHER_A),
        (B & 3 * A, BOTH + 2 * EITHER_A),
        (0.25 * A & B, 0.25 * BOTH + 0.75 * EITHER_B),
        (0 * A & B, EITHER_B),
        (3 * A & 2 * B, 2 * BOTH + EITHER_A),
        (2 * A & 2 * B, 2 * BOTH),
        (2 * (A & 3 * B), 2 * BOTH + 4 * EITHER_B),
        (2 * (A & 3 * B) & A, 2 * BOTH + 4 * EITHER_B),
        (3 * A & 2 * A, 3 * EITHER_A),
        (A & B & -1 * A, BOTH - EITHER_A),
    ],
    ids=lambda value: str(value) if isinstance(value, ce.Energy) else "",
)
def test_the_evidence_of_weighted_events_is_that_of_their_joint_distribution(energy, expected):
    torch.testing.assert_close(energy.evidence(X), expected)


def test_a_weight_distributes_over_a_conjunction():
    for w in (0.3, 1.0, 2.5):
        torch.testing.assert_close((w * A & w * B)(X), (w * (A & B))(X))


def test_events_that_are_independent_keep_the_sum_of_weighted_evidences():
    other = ClassifierEnergy(nn.Linear(1, 1).double(), 1, BASE, name="other")
    torch.testing.assert_close((2 * A & 3 * other).evidence(X), 2 * EITHER_A + 3 * other.evidence(X))


def test_a_learnable_weight_has_the_value_and_the_slope_of_a_number():
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.double))
    energy = weight * A & B
    for value, slope in ((2.0, EITHER_A), (0.5, BOTH - EITHER_B), (-1.0, EITHER_A)):
        with torch.no_grad():
            weight.fill_(value)
        torch.testing.assert_close(energy.evidence(X), (value * A & B).evidence(X))
        (found,) = torch.autograd.grad(energy.evidence(X).sum(), weight)
        torch.testing.assert_close(found, slope.sum())


def test_a_contradiction_stays_one_with_weights():
    never = 2 * A & ~A
    assert never.unsatisfiable
    with pytest.raises(ContradictionError):
        never(X)


def test_repeated_conjunctions_of_weighted_events_stay_small():
    energy = 2 * A & B
    for _ in range(40):
        energy = energy & energy
    torch.testing.assert_close(energy.evidence(X), BOTH + EITHER_A)


def test_the_density_is_that_of_quadrature_and_obedience_does_not_fall_with_a_weight():
    energies = [w * A & B for w in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)]
    shares = torch.stack([torch.softmax(-energy.evidence(X) - BASE(X), 0) for energy in energies])
    for event in (EITHER_A, BOTH):
        assert ((shares @ (-event).exp()).diff() > 0).all()
    x = (2 * A & B).sample((4000, 1), seed=0, dtype=torch.double)[:, 0]
    mean = float(shares[3] @ X[:, 0])
    width = math.sqrt(float(shares[3] @ X[:, 0].square()) - mean**2)
    assert abs(float(x.mean()) - mean) < 4 * width / math.sqrt(4000)
