"""Coordinates of supports: points of the support, the volume, the way back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import constraints

from composable_energy.coordinates import coordinates_of
from composable_energy.errors import ShapeError
from composable_energy.supports import circle, contains, sphere
from tests.distribution_values import F64
from tests.support_values import BIJECTIONS, EVERY, MIXED


def draw(coordinates, seed: int, count: int = 5) -> Tensor:
    return 2 * torch.randn(count, *coordinates.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make(support, event):
    return coordinates_of(support, event, F64, torch.device("cpu"))


@pytest.mark.parametrize(("support", "event"), EVERY.values(), ids=EVERY)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_coordinates_give_points_of_the_support_and_lead_back_to_them(support, event, seed):
    coordinates = make(support, event)
    x, volume = coordinates.points(draw(coordinates, seed))
    assert (x.shape, volume.shape) == ((5, *event), (5,))
    assert contains(support, x).all()
    torch.testing.assert_close(coordinates.points(coordinates.inverse(x))[0], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("support", "event", "free"), BIJECTIONS.values(), ids=BIJECTIONS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_volume_is_the_determinant_of_the_jacobian(support, event, free, seed):
    coordinates = make(support, event)
    u = draw(coordinates, seed, 1)
    jacobian = torch.autograd.functional.jacobian(lambda u: free(coordinates.points(u)[0]).flatten(), u)
    expected = torch.linalg.slogdet(jacobian.reshape(u.numel(), u.numel()))[1]  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(coordinates.points(u)[1][0], expected)


def test_what_coordinates_forget_has_the_integral_one():
    line = torch.linspace(-8, 8, 401, dtype=F64) + 1e-3
    volumes = make(sphere, (2,)).points(torch.cartesian_prod(line, line))[1]
    assert (volumes.exp().sum() * (16 / 400) ** 2).item() == pytest.approx(2 * math.pi, rel=1e-3)  # of the uniform density on the circle
    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    turns = torch.stack([make(circle, (1,)).points(x + 2 * math.pi * k)[1].exp() for k in range(-9, 10)])
    torch.testing.assert_close(turns.sum(0), torch.ones(7, dtype=F64))
    torch.testing.assert_close(make(circle, (1,)).points(x + 4 * math.pi)[0], x)


def test_small_shares_of_a_simplex_keep_their_digits_in_float32():
    coordinates = coordinates_of(constraints.simplex, (3,), torch.float32, torch.device("cpu"))
    u = torch.tensor([[30.0, -40.0], [-60.0, 0.0]])
    torch.testing.assert_close(coordinates.inverse(coordinates.points(u)[0]), u)


def test_a_support_of_another_shape_is_an_error():
    for support, event in ((MIXED, (6,)), (constraints.stack([constraints.positive] * 2), (3,)), (constraints.positive_definite, (2, 3))):
        with pytest.raises(ShapeError):
            make(support, event)
    with pytest.raises(ShapeError):
        make(constraints.simplex, ())
    with pytest.raises(ShapeError):
        make(constraints.interval(torch.zeros(3), torch.ones(3)), (2,))
