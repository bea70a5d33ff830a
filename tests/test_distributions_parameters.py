"""Lifting of distributions: options, learnable tensors, which are refused, and constants, which move with the energy."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import LiftError, OptionError, ShapeError
from tests.distribution_values import BOTH, F64, inside_points, t


class Moved(td.AffineTransform):
    """A transform whose shift is a network's."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.network = nn.Linear(2, 2)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.network.bias


@pytest.mark.parametrize(
    "make",
    [
        lambda: td.Normal(nn.Parameter(torch.zeros(2)), 1.0),
        lambda: td.Normal(torch.zeros(2), nn.Parameter(torch.zeros(2)).exp()),
        lambda: td.Normal(torch.zeros(2, requires_grad=True), 1.0),
        lambda: td.MixtureSameFamily(td.Categorical(logits=nn.Parameter(torch.zeros(2))), td.Normal(torch.zeros(2), 1.0)),
        lambda: td.TransformedDistribution(td.Normal(0.0, 1.0), [td.AffineTransform(nn.Parameter(torch.zeros(2)), 1.0)]),
        lambda: td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [Moved()]),
        lambda: td.RelaxedBernoulli(torch.tensor(1.0), nn.Parameter(torch.tensor([0.5]))),
    ],
    ids=["parameter", "exp", "no parameter", "weights", "transform", "network", "unknown class"],
)
def test_learnable_tensors_are_refused_with_the_ways_out(make):
    with pytest.raises(LiftError, match=r"lift a module .*\.detach\(\)"):
        ce.as_energy(make())


class Learnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -td.Normal(torch.zeros(2), self.log_scale.exp()).log_prob(x).sum(1)


def test_the_ways_out_work():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    module = Learnt()
    expected = ce.as_energy(td.Normal(torch.zeros(2), module.log_scale.exp().detach()))(x)
    torch.testing.assert_close(ce.as_energy(module)(x), expected)


@BOTH
def test_constants_move_with_the_energy(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution)
    before = energy(points)
    there = copy.deepcopy(energy).float()
    assert there(points.float()).dtype == torch.float32
    torch.testing.assert_close(there.double()(points), before, rtol=1e-3, atol=1e-3)
    assert torch.equal(energy(points), before)
    assert not list(energy.parameters())


@BOTH
def test_inverse_transforms_survive_a_copy(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution)
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(other(points), energy(points))
        assert torch.equal(other.double()(points), energy(points))


@pytest.mark.parametrize("inverse", [False, True])
def test_composed_transforms_are_lifted_and_move_with_the_energy(inverse):
    composed = td.ComposeTransform([td.AffineTransform(t(1.0, 0.0), t(2.0, 3.0)), td.SigmoidTransform()])
    base = td.Uniform(t(0.2, 0.2), t(0.8, 0.8)) if inverse else td.Normal(t(0.0, 0.0), t(1.0, 1.0))
    law = td.TransformedDistribution(base, [composed.inv if inverse else composed])
    energy, points = ce.as_energy(law), law.sample((3,))
    torch.testing.assert_close(energy(points), -law.log_prob(points).sum(1))
    torch.testing.assert_close(copy.deepcopy(energy).float()(points.float()), energy(points).float())


def test_the_original_distribution_stays_as_it_is():
    distribution = td.LogNormal(t(0.0, 1.0), t(1.0, 1.0), validate_args=True)  # torch.compile switches the default off
    ce.as_energy(distribution).float()
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(t(-1.0, -1.0))
    assert distribution.loc.dtype == F64


class Decoder(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, z], 1)


def test_a_distribution_takes_the_options_of_a_callable():
    decoder = Decoder()
    energy = ce.as_energy(td.Normal(torch.zeros(2), 1.0), decoder=decoder, name="prior", event_shape=(2,))
    assert energy.decoder is decoder
    assert str(energy) == "prior"
    assert energy.config()["decoder"] is decoder
    assert ce.as_energy(td.Normal(0.0, 1.0), decoder=decoder).decoder is decoder
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        ce.as_energy(td.Normal(torch.zeros(2), 1.0), event_shape=(3,))


@pytest.mark.parametrize("obj", [td.Normal(torch.zeros(2), 1.0), lambda x: x.sum(1)], ids=["distribution", "callable"])
def test_an_unknown_option_is_a_typed_error(obj):
    with pytest.raises(OptionError, match="decodr"):
        ce.as_energy(obj, decodr=Decoder())
