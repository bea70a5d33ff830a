"""Operators: linearity and adjoints, shapes, descriptions, against direct computation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy_observed import OPERATORS, Blur, Chain, Downsample, Function, Identity, Linear, Mask, Radon, operator_of

SHAPE = (2, 6, 6)
F64 = torch.float64


def operators():
    torch.manual_seed(1)
    return {
        "identity": Identity(),
        "mask": Mask(torch.rand(SHAPE) > 0.5),
        "blur": Blur(0.8),
        "blur, zeros": Blur(torch.rand(3, 5), "zeros"),
        "blur, circular": Blur(1.0, "circular"),
        "downsample": Downsample(3),
        "radon": Radon([0.0, 30.0, 90.0, 135.0]),
        "linear": Linear(torch.randn(5, 72), SHAPE),
        "chain": Chain([Blur(0.6), Downsample(2)]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", operators())
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_linear_operator_and_its_adjoint_have_equal_products(name, seed):
    operator = operators()[name].double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *SHAPE, dtype=F64, generator=generator)
    y = torch.randn(operator(x).shape, dtype=F64, generator=generator)
    back = operator.adjoint(y, SHAPE)
    torch.testing.assert_close((operator(x) * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", operators())
def test_an_operator_knows_the_shape_of_points_and_is_rebuilt_from_its_description(name):
    operator = operators()[name]
    x = torch.randn(2, *SHAPE)
    y = operator(x)
    assert operator.point_shape(operator.select(y[0]).shape) == SHAPE
    again = operator_of({"name": operator.name, **operator.config()})
    assert type(again) is OPERATORS[operator.name]
    assert torch.equal(again(x), y)


def test_a_mask_selects_the_measured_numbers_of_a_picture_or_takes_them_alone():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[:, 1] = True
    x = torch.arange(6.0).view(1, 2, 3)
    assert Mask(mask)(x).tolist() == [[1.0, 4.0]]
    assert Mask(mask).select(x[0]).tolist() == Mask(mask).select(torch.tensor([1.0, 4.0])).tolist() == [1.0, 4.0]
    assert Mask(torch.tensor([False, True, False]))(x).tolist() == [[1.0, 4.0]]  # for each row


def test_a_blur_is_the_convolution_with_its_kernel_and_keeps_a_constant():
    kernel = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # takes the pixel above
    x = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(Blur(kernel, "circular")(x), x.roll(1, 2))
    torch.testing.assert_close(Blur(1.5)(torch.ones(1, 3, 9, 9)), torch.ones(1, 3, 9, 9))


def test_projections_at_right_angles_are_sums_of_rows_and_columns():
    x = torch.rand(1, 1, 5, 5)
    found = Radon([0.0, 90.0])(x)
    torch.testing.assert_close(found[:, :, 0], x.sum(2))
    torch.testing.assert_close(found[:, :, 1], x.sum(3))


def test_the_projections_of_a_disc_have_the_lengths_of_its_chords():
    size, radius = 128, 40.0
    axis = torch.arange(size) - (size - 1) / 2
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).float()[None, None]
    found = Radon([0.0, 20.0, 65.0, 110.0])(disc)[0, 0]
    expected = 2 * (radius**2 - axis**2).clamp(min=0).sqrt()
    inner = axis.abs() < 0.9 * radius
    assert (found - expected)[:, inner].abs().max() < 0.05 * 2 * radius


def test_a_function_has_no_adjoint():
    with pytest.raises(ExpressionError, match="not linear"):
        Function(torch.tanh).adjoint(torch.ones(1, 2), (2,))


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), OptionError, "nothing is measured"),
        (lambda: Mask(torch.tensor([0.0, 0.5])), OptionError, "True where a number is measured"),
        (lambda: Mask(torch.ones(3, dtype=torch.bool)).select(torch.ones(2, 4)), ShapeError, "does not fit"),
        (lambda: Mask(torch.ones(3, dtype=torch.bool))(torch.ones(1, 4)), ShapeError, "does not fit"),
        (lambda: Blur(0.0), OptionError, "positive"),
        (lambda: Blur(torch.ones(2, 3)), OptionError, "odd length"),
        (lambda: Blur(torch.full((3, 3), math.nan)), OptionError, "finite"),
        (lambda: Blur(1.0, "mirror"), OptionError, "reflect"),
        (lambda: Blur(3.0)(torch.ones(1, 1, 4, 4)), ShapeError, "too large"),
        (lambda: Blur(1.0)(torch.ones(1, 4, 4)), ShapeError, "B, C, H, W"),
        (lambda: Downsample(1), OptionError, "at least 2"),
        (lambda: Downsample(4)(torch.ones(1, 1, 6, 6)), ShapeError, "whole squares"),
        (lambda: Downsample(4).point_shape(torch.Size((6,))), ShapeError, "C, H, W"),
        (lambda: Radon([]), OptionError, "angles"),
        (lambda: Radon([0.0])(torch.ones(1, 1, 4, 5)), ShapeError, "square"),
        (lambda: Radon([0.0, 1.0]).point_shape(torch.Size((1, 3, 5))), ShapeError, "2 angles"),
        (lambda: Linear(torch.ones(3)), OptionError, "two axes"),
        (lambda: Linear(torch.ones(3, 4), (5,)), OptionError, "4 columns"),
        (lambda: Chain([]), OptionError, "at least one"),
        (lambda: operator_of("blurr"), OptionError, "Did you mean 'blur'"),
        (lambda: operator_of({"name": "blur", "width": 1.0}), OptionError, "takes kernel, padding"),
        (lambda: operator_of(torch.ones(3)), OptionError, "mask.bool"),
        (lambda: operator_of(3), LiftError, "function"),
    ],
)
def test_what_cannot_be_measured_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()
