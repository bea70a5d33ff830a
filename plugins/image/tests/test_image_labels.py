"""Conditional networks: the effect of labels and numbers, and errors for invalid ones."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.testing.checks import assert_close
from composable_energy_image.energy import number_features

CONDITIONAL = {
    "igebm-resnet32": {"width": 4, "size": 8},
    "igebm-mnist": {"width": 4, "size": 8},
    "compositional-64": {"width": 4, "size": 16},
    "improved-cd": {"width": 4, "size": 9},
    "energy-unet": {"width": 4, "size": 8},
}


def conditional(name: str, labels: int | None = 3, numbers: int | None = None) -> ce.Energy:
    torch.manual_seed(0)
    return ce.get("energy", name, labels=labels, numbers=numbers, **CONDITIONAL[name]).eval()


def with_other_tables(energy: ce.Energy) -> ce.Energy:
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return energy


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONAL)
def test_at_the_start_all_labels_agree_with_the_energy_without_labels(name):
    energy, plain = conditional(name), conditional(name, labels=None)
    x = torch.rand(3, *plain.event_shape)  # pyright: ignore[reportOptionalIterable]
    expected = plain(x)
    for y in (0, 2, torch.tensor([0, 1, 2]), torch.eye(3), torch.tensor([[0.2, 0.3, -4.0]])):
        assert_close(energy(x, y=y), expected, "with a label and without", network=energy)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_whole_labels_are_one_hot_vectors_and_make_a_difference(name):
    energy = with_other_tables(conditional(name))
    x = torch.rand(1, *energy.event_shape).expand(3, -1, -1, -1)  # pyright: ignore[reportOptionalIterable]
    each = energy(x, y=torch.tensor([0, 1, 2]))
    assert_close(energy(x, y=torch.eye(3)), each, "one-hot vectors and numbers", network=energy)
    assert_close(torch.cat([energy.given(y=label)(x[:1]) for label in range(3)]), each, "alone and in a batch", network=energy)
    assert len(each.unique()) == 3


@pytest.mark.parametrize(
    ("y", "error", "told"),
    [
        (3, OptionError, "labels from 0 to 2"),
        (torch.tensor([0, -1]), OptionError, "labels from -1 to 0"),
        (1.0, DtypeError, "integer dtype"),
        (torch.tensor([True, False]), DtypeError, "integer dtype"),
        (torch.zeros(2, 4), ShapeError, r"vectors of shape \(B, 3\), got \(2, 4\)"),
        (torch.zeros(2, 3, 1), ShapeError, r"got \(2, 3, 1\)"),
        (torch.tensor([0, 1, 2]), ShapeError, "3 rows"),
        ("cat", OptionError, "number or a tensor"),
    ],
    ids=str,
)
def test_labels_that_make_no_sense_are_reported(y, error, told):
    energy = conditional("igebm-resnet32")
    with pytest.raises(error, match=told):
        energy(torch.rand(2, 3, 8, 8), y=y)


def test_a_conditional_energy_says_what_it_depends_on():
    assert conditional("igebm-resnet32").required_conditions == {"y"}
    assert conditional("igebm-resnet32", labels=None).conditions == set()
    assert conditional("energy-unet").conditions == {"y", "sigma"} and conditional("energy-unet").required_conditions == {"y"}
    with pytest.raises(ExpressionError, match=r"given\(y=...\)"):
        conditional("igebm-resnet32")(torch.rand(2, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONAL)
def test_at_the_start_all_numbers_agree_with_the_energy_without_any(name):
    energy, plain = conditional(name, None, numbers=2), conditional(name, None)
    x = torch.rand(3, *plain.event_shape)  # pyright: ignore[reportOptionalIterable]
    for y in (torch.rand(3, 2), torch.tensor([[0.3, -0.7]])):
        assert_close(energy(x, y=y), plain(x), "with numbers and without", network=energy)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONAL)
def test_numbers_make_a_difference_row_by_row(name):
    energy = with_other_tables(conditional(name, None, numbers=2))
    x = torch.rand(1, *energy.event_shape).expand(3, -1, -1, -1)  # pyright: ignore[reportOptionalIterable]
    y = torch.tensor([[0.1, 0.9], [-0.4, 0.2], [-0.4, 0.3]])
    each = energy(x, y=y)
    assert_close(torch.cat([energy.given(y=row[None])(x[:1]) for row in y]), each, "alone and in a batch", network=energy)
    assert_close(energy(x, y=y.double()), each, "numbers of another dtype", network=energy)
    assert len(each.unique()) == 3


def test_one_number_may_come_without_an_axis_of_its_own():
    energy = with_other_tables(conditional("igebm-resnet32", None, numbers=1))
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0.3, -1.0])
    assert_close(energy(x, y=y[:, None]), energy(x, y=y), "with an axis and without", network=energy)
    assert_close(energy(x[:1], y=0.3), energy(x, y=y)[:1], "alone and in a batch", network=energy)
    assert_close(energy(x, y=1), energy(x, y=1.0), "whole and real numbers", network=energy)


def test_the_network_sees_numbers_and_waves_of_them():
    numbers = torch.tensor([[0.25, -0.5]])
    told = number_features(numbers, 2, torch.zeros(1))
    angles = [math.pi / 2 * wave * v for wave in (1, 2, 4) for v in (0.25, -0.5)]
    expected = [0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(told, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("y", "error", "told"),
    [
        (torch.zeros(2, 3), ShapeError, r"2 numbers for each image, with shape \(B, 2\), got \(2, 3\)"),
        (torch.zeros(2), ShapeError, "y.unsqueeze"),
        (0.5, ShapeError, r"got \(2,\)"),
        (torch.zeros(2, 2, dtype=torch.bool), DtypeError, "real numbers, got torch.bool"),
        (torch.zeros(2, 2, dtype=torch.complex64), DtypeError, "real numbers"),
        (torch.zeros(3, 2), ShapeError, "3 rows"),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_reported(y, error, told):
    energy = conditional("igebm-resnet32", None, numbers=2)
    with pytest.raises(error, match=told):
        energy(torch.rand(2, 3, 8, 8), y=y)


def test_an_energy_is_reported_labels_or_numbers():
    assert conditional("energy-unet", None, numbers=2).required_conditions == {"y"}
    for name in CONDITIONAL:
        with pytest.raises(OptionError, match="labels=3, numbers=2"):
            conditional(name, 3, numbers=2)
    with pytest.raises(OptionError, match="numbers must be a whole number"):
        conditional("igebm-resnet32", None, numbers=0)
    with pytest.raises(ExpressionError, match=r"given\(y=...\)"):
        conditional("igebm-resnet32", None, numbers=2)(torch.rand(2, 3, 8, 8))
