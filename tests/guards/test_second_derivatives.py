"""Gradients that are differentiated again, through energies with a gradient of their own."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError


def quartic(x):
    return x.square().sum(1).square() / 4


class OwnGradient(ce.Energy):
    def forward(self, x):
        return x.square().sum(1) / 2

    def with_gradient(self, x):
        return self(x), x.clone()


class GradientNorm(ce.Energy):
    """The squared norm of the gradient of another energy."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        (gradient,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return gradient.square().sum(1)


@pytest.mark.slow
def test_a_gradient_of_ones_own_is_not_differentiated_as_a_constant():
    for inner in (OwnGradient(), OwnGradient() & ce.as_energy(quartic)):
        with pytest.raises(ExpressionError, match=r"is that of its own `with_gradient`, and has no derivative"):
            GradientNorm(inner).with_gradient(torch.ones(2, 2))
