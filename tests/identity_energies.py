"""Energies with and without configuration for the tests of identity."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import composable_energy as ce

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


class Ring(ce.Energy):
    """A number in an attribute, described by `config()`."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.event_shape = (2,)

    def forward(self, x):
        return (x.norm(dim=1) - self.radius).square()

    def config(self):
        return {"radius": self.radius}


class Tilt(ce.Energy):
    """A number in an attribute, without `config()`."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return self.slope * x[:, 0] + x.square().sum(1)


class Noisy(ce.Energy):
    """Weights, and a noise level."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = filled(nn.Linear(2, 3), weight)
        self.weight = weight
        self.event_shape = (2,)

    def forward(self, x, sigma=0.1):
        return self.net(x).square().sum(1) + sigma * x.square().sum(1)

    def config(self):
        return {"weight": self.weight}


def bowl(x):
    return x.square().sum(1) / 2


def filled(module: nn.Module, number: float) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number + i)
    return module


@pytest.fixture
def identity_registry():
    """Registers the energies that are loaded by name."""
    with (
        ce.register("energy", "ring", Ring),
        ce.register("energy", "noisy", Noisy),
        ce.register("encoder", "linear", nn.Linear),
    ):
        yield


def measured(energy: ce.Energy) -> tuple[torch.Tensor, torch.Tensor]:
    return energy.with_gradient(X.clone())


def loaded(energy: ce.Energy) -> ce.Energy:
    with tempfile.TemporaryDirectory() as folder:
        energy.save(Path(folder) / "saved")
        return ce.load(Path(folder) / "saved")


def check_same(energy: ce.Energy, other: ce.Energy, way: str) -> None:
    assert energy.equals(other) and other.equals(energy), way
    assert [base.weight for base in other.bases] == [base.weight for base in energy.bases], way
    assert len((energy & other).bases) == len(energy.bases), way  # a base is one with that of its copy
    (value, gradient), (same_value, same_gradient) = measured(energy), measured(other)
    assert torch.equal(value, same_value), way
    torch.testing.assert_close(gradient, same_gradient, rtol=1e-5, atol=1e-5, msg=way)  # in eval mode networks are evaluated once
