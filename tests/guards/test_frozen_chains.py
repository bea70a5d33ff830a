"""Chains that begin on a wall, which is thin beside the tuned step, leave it: none stands still, and moments are those of the integral."""

import math

import pytest
import torch
from torch.distributions import Normal, VonMises, constraints
from torch.nn.functional import softplus

import composable_energy as ce

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


def plane(scale: float) -> ce.Energy:
    return ce.as_energy(Normal(torch.zeros(2), scale)) & ~ce.as_energy(Normal(torch.ones(2), 0.5))


def circle(concentration: float) -> ce.Energy:
    wide, narrow = (ce.as_energy(VonMises(torch.zeros(1), torch.tensor([k]))) for k in (0.001, concentration))
    return wide & ~narrow


def box() -> ce.Energy:
    wide = ce.as_energy(lambda x: x.square().sum(1) / 50, event_shape=(2,)).on(constraints.interval(-4.0, 12.0))
    return wide & ~ce.as_energy(Normal(torch.ones(2), 0.5))


def wall(size: int, steepness: float) -> ce.Energy:
    return ce.as_energy(lambda x: x.square().sum(1) / 50 + softplus(steepness * x.sum(1) / size**0.5), event_shape=(size,))


def draw(energy: ce.Energy, sampler: str, seed: int = 5) -> torch.Tensor:
    """Returns the last half of 512 chains, after a check that at most 1 % of them stood still in it."""
    _, trace = energy.sample(512, sampler=sampler, steps=200, seed=seed, trace=1)
    points = trace.points.double()
    points = points[len(points) // 2 :].flatten(2)
    assert (points == points[:1]).all(2).all(0).double().mean() <= 0.01
    return points


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """Chains are independent: the standard error is that of their means."""
    means = values.mean(0)
    assert (means.mean() - expected).abs() < 4.5 * means.std() / math.sqrt(len(means))


def integral(energy: ce.Energy, low: float, high: float, size: int, function) -> float:
    axis = torch.linspace(low, high, 1201 if size > 1 else 100_001, dtype=F64)
    grid = torch.cartesian_prod(*[(axis[1:] + axis[:-1]) / 2] * size).view(-1, size)
    with torch.no_grad():
        weights = torch.softmax(-energy.double()(grid), 0)
    return (weights * function(grid)).sum().item()


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "scale"), [("mala", 2.0), ("hmc", 10.0), ("chees", 10.0)])
def test_no_chain_stands_still_at_the_border_of_a_complement(scale, sampler):
    points = draw(plane(scale), sampler)
    for function in (lambda x: x.sum(-1), lambda x: (x - 1).norm(dim=-1)):
        assert_mean(function(points), integral(plane(scale), -7 * scale, 7 * scale, 2, function))


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "concentration"), [("mala", 50.0), ("chees", 7.0)])
def test_no_chain_stands_still_at_the_ends_of_an_arc(concentration, sampler):
    points = draw(circle(concentration), sampler)
    expected = integral(circle(concentration), -math.pi, math.pi, 1, lambda x: x[:, 0].cos())
    assert_mean(points[..., 0].cos(), expected)


@pytest.mark.full
def test_no_chain_stands_still_at_a_border_inside_a_box():
    points = draw(box(), "mala")
    for function in (lambda x: x.sum(-1), lambda x: (x - 1).norm(dim=-1)):
        assert_mean(function(points), integral(box(), -4, 12, 2, function))


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "size"), [("mala", 10), ("hmc", 1)])
def test_no_chain_stands_still_at_a_steep_wall(size, sampler):
    """Across all coordinates: their sum is half of a Gaussian, with a wall of a thickness of .01."""
    points = draw(wall(size, 100.0), sampler)
    assert_mean(points.sum(-1) / size**0.5, integral(wall(1, 100.0), -35, 35, 1, lambda x: x[:, 0]))
