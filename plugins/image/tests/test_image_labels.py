"""Labels: what they do, and what is told of those that make no sense."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError

CONDITIONAL = {
    "igebm-resnet32": {"width": 4, "size": 8},
    "igebm-mnist": {"width": 4, "size": 8},
    "compositional-64": {"width": 4, "size": 16},
    "improved-cd": {"width": 4, "size": 9},
    "energy-unet": {"width": 4, "size": 8},
}


def conditional(name: str, labels: int | None = 3) -> ce.Energy:
    torch.manual_seed(0)
    return ce.get_energy(name, labels=labels, **CONDITIONAL[name]).eval()


def with_other_tables(energy: ce.Energy) -> ce.Energy:
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return energy


@pytest.mark.parametrize("name", CONDITIONAL)
def test_at_the_start_all_labels_agree_with_the_energy_without_labels(name):
    energy, plain = conditional(name), conditional(name, labels=None)
    x = torch.rand(3, *plain.event_shape)  # pyright: ignore[reportOptionalIterable]
    expected = plain(x)
    for y in (0, 2, torch.tensor([0, 1, 2]), torch.eye(3), torch.tensor([[0.2, 0.3, -4.0]])):
        torch.testing.assert_close(energy(x, y=y), expected)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_whole_labels_are_one_hot_vectors_and_make_a_difference(name):
    energy = with_other_tables(conditional(name))
    x = torch.rand(1, *energy.event_shape).expand(3, -1, -1, -1)  # pyright: ignore[reportOptionalIterable]
    each = energy(x, y=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(energy(x, y=torch.eye(3)), each)
    torch.testing.assert_close(torch.cat([energy.given(y=label)(x[:1]) for label in range(3)]), each)
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
def test_labels_that_make_no_sense_are_told(y, error, told):
    energy = conditional("igebm-resnet32")
    with pytest.raises(error, match=told):
        energy(torch.rand(2, 3, 8, 8), y=y)


def test_a_conditional_energy_says_what_it_depends_on():
    assert conditional("igebm-resnet32").required_conditions == {"y"}
    assert conditional("igebm-resnet32", labels=None).conditions == set()
    assert conditional("energy-unet").conditions == {"y", "sigma"} and conditional("energy-unet").required_conditions == {"y"}
    with pytest.raises(ExpressionError, match=r"given\(y=...\)"):
        conditional("igebm-resnet32")(torch.rand(2, 3, 8, 8))
