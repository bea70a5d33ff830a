"""Gradients that are differentiated again have the derivatives of torch's own, whatever the energy consists of."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from composable_energy.errors import ExpressionError
from composable_energy_training.second_derivatives import differentiable_gradient

KINDS = ("plain", "strided", "grouped", "dilated", "same", "no bias", "spectral", "pooled", "line", "volume", "in place")


class Net(nn.Module):
    """A scalar of two convolutions of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = {"line": nn.Conv1d, "volume": nn.Conv3d}.get(kind, nn.Conv2d)
        options: dict[str, Any] = {
            "strided": {"stride": 2, "padding": (1, 0)},
            "grouped": {"groups": 2, "padding": 1},
            "dilated": {"dilation": 2, "padding": 2},
            "same": {"padding": "same"},
            "no bias": {"bias": False},
        }.get(kind, {"padding": 1})
        self.first, self.second = layer(2, 4, 3, **options), layer(4, 4, 3, padding=1)
        self.first = spectral_norm(self.first) if kind == "spectral" else self.first
        self.activation = nn.SiLU(inplace=kind == "in place")
        self.pool = nn.AvgPool2d(2) if kind == "pooled" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.activation(self.first(x)))
        return self.activation(self.second(h)).square().flatten(1).sum(1)


def points(kind: str) -> Tensor:
    axes = {"line": 1, "volume": 3}.get(kind, 2)
    return torch.randn(3, 2, *[8] * axes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain_gradient(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x if x.requires_grad else x.detach().requires_grad_()
    values = function(point)
    return values, torch.autograd.grad(values.sum(), point, create_graph=True)[0]


def derivatives(gradient_of: Any, function: Any, x: Tensor, parameters: Any) -> list[Tensor]:
    """Energies, gradients, and the derivatives of a loss of both."""
    values, gradient = gradient_of(function, x)
    loss = (gradient * torch.cos(3 * gradient)).sum() + values.square().sum()
    return [values, gradient, *torch.autograd.grad(loss, parameters, retain_graph=True)]


def assert_same(function: Any, x: Tensor, parameters: Any, tolerance: float = 1e-10) -> None:
    ours, theirs = (derivatives(kind, function, x, parameters) for kind in (differentiable_gradient, plain_gradient))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_weights_are_those_of_torch(kind):
    net = Net(kind).double().eval()
    assert_same(net, points(kind), list(net.parameters()))


def test_channels_last_and_points_with_a_graph_make_no_difference():
    net, x = Net("plain").double(), points("plain")
    for weight in list(net.parameters())[::2]:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert_same(net, x, list(net.parameters()))
    x.requires_grad_()
    assert_same(net, x, [x, *net.parameters()])
    assert_same(net, x * 2, [x, *net.parameters()])


def test_weights_that_depend_on_the_points_count():
    """In a hypernetwork the gradient with respect to points passes through weights."""
    torch.manual_seed(0)
    net = nn.Linear(2 * 64, 2 * 4 * 9).double()

    def energy(x: Tensor) -> Tensor:
        weight = net(x.flatten(1)).sum(0).view(4, 2, 3, 3)
        return F.silu(F.conv2d(x, weight, padding=1)).flatten(1).sum(1)

    assert_same(energy, points("plain"), list(net.parameters()))


@pytest.mark.parametrize("kind", ["pooled", "spectral"])
def test_layers_that_are_computed_again_have_the_same_derivatives(kind):
    net = Net(kind).double().eval()
    assert_same(lambda x: checkpoint(net, x, use_reentrant=False), points(kind), list(net.parameters()))


def test_autocast_rounds_as_torch_does():
    net, x = Net("pooled"), points("pooled").float()
    found = []
    for gradient_of in (differentiable_gradient, plain_gradient):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (gradient_of(net, x)[1] ** 2).sum()
        found.append(torch.autograd.grad(loss, list(net.parameters())))
    exact = torch.autograd.grad((plain_gradient(net, x)[1] ** 2).sum(), list(net.parameters()))
    for one, other, right in zip(*found, exact, strict=True):
        assert one.dtype == right.dtype and (one - right).norm() < max(2 * (other - right).norm(), 0.02 * right.norm())


def test_energies_that_ignore_points_have_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    for energy in (lambda _: weight * 2, lambda x: x.detach().flatten(1).sum(1), lambda x: x.detach().flatten(1).sum(1) * weight):
        with pytest.raises(ExpressionError, match="no gradient at its points"):
            differentiable_gradient(energy, points("plain"))
