"""Operators: shapes, descriptions and results, against direct computation."""

import pytest
import torch

from composable_energy.errors import OptionError, ShapeError
from composable_energy_observed import OPERATORS, Blur, Chain, Downsample, Identity, Linear, Mask, Radon, operator_of

SHAPE = (2, 6, 6)


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


def test_projections_are_sums_of_rows_and_columns_and_the_lengths_of_chords_of_a_disc():
    x = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(Radon([0.0, 90.0])(x), torch.stack([x.sum(2), x.sum(3)], 2))
    size, radius = 128, 40.0
    axis = torch.arange(size) - (size - 1) / 2
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).float()[None, None]
    found = Radon([0.0, 20.0, 65.0, 110.0])(disc)[0, 0]
    expected = 2 * (radius**2 - axis**2).clamp(min=0).sqrt()
    inner = axis.abs() < 0.9 * radius
    assert (found - expected)[:, inner].abs().max() < 0.05 * 2 * radius


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), OptionError, "nothing is measured"),
        (lambda: Mask(torch.tensor([0.0, 0.5])), OptionError, "True where a number is measured"),
        (lambda: Mask(torch.ones(3, dtype=torch.bool))(torch.ones(1, 4)), ShapeError, "does not fit"),
        (lambda: Blur(torch.ones(2, 3)), OptionError, "odd length"),
        (lambda: Blur(3.0)(torch.ones(1, 1, 4, 4)), ShapeError, "too large"),
        (lambda: Blur(1.0)(torch.ones(1, 4, 4)), ShapeError, "B, C, H, W"),
        (lambda: Downsample(4)(torch.ones(1, 1, 6, 6)), ShapeError, "whole squares"),
        (lambda: Radon([0.0])(torch.ones(1, 1, 4, 5)), ShapeError, "square"),
        (lambda: Chain([]), OptionError, "at least one"),
        (lambda: operator_of("blurr"), OptionError, "Did you mean 'blur'"),
        (lambda: operator_of({"name": "blur", "width": 1.0}), OptionError, "takes kernel, padding"),
        (lambda: operator_of(torch.ones(3)), OptionError, "mask.bool"),
    ],
)
def test_what_cannot_be_measured_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()
