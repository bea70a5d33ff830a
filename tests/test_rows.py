"""Rows of conditions for samplers that give several points to a chain, or the point of one chain to another."""

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.sampling import has_rows, repeated
from composable_energy.sampling.wrappers import select_rows
from composable_energy.testing import Gaussian


class Labelled(ce.Energy):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y[:, None]).square().sum(1) / 2


BASE, LABELLED, Y = Gaussian(torch.zeros(2)), Labelled(), torch.arange(4.0)
HEAD = ce.ClassifierEnergy(lambda x, y: x[:, :1] * y[:, None], 1, base=BASE)
EVENT = ce.ClassifierEnergy(lambda x: torch.cat([x, -x], 1), base=BASE, name="event")
PLACE = ce.GaussianHead(lambda x: x, BASE, dims=1, name="place")


@pytest.mark.parametrize(
    "energy",
    [
        LABELLED.given(y=Y),
        LABELLED.given(y=Y) & BASE,
        BASE | 2 * LABELLED.given(y=Y),
        HEAD.given(y=Y),
        BASE & ~HEAD.given(y=Y),
        ~EVENT.given(y=Y.long()),
        BASE & PLACE(torch.randn(4, 1)),
        ~PLACE.near(torch.randn(4, 1), 1.0),
    ],
    ids=str,
)
def test_rows_are_found_anywhere_in_an_expression_and_repeated_for_several_points_of_a_chain(energy):
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([energy(x[:, k]) for k in range(3)], 1)
    part = select_rows(energy, range(1, 3), 4)
    picked = select_rows(energy, [2, 0], 4)
    assert has_rows(energy) and has_rows(part)
    torch.testing.assert_close(repeated(energy, 4, 3)(x.flatten(0, 1)).view(4, 3), expected)
    torch.testing.assert_close(repeated(part, 2, 3)(x[1:3].flatten(0, 1)).view(2, 3), expected[1:3])
    torch.testing.assert_close(repeated(picked, 2, 3)(x[[2, 0]].flatten(0, 1)).view(2, 3), expected[[2, 0]])


@pytest.mark.parametrize(
    "energy", [BASE, BASE & BASE, LABELLED.given(y=1.0), BASE | LABELLED.given(y=Y[1:2]), ~HEAD.given(y=2.0), ~EVENT.given(y=1)], ids=str
)
def test_one_value_for_all_is_no_row(energy):
    x = torch.zeros(6, 2)
    assert not has_rows(energy) and not has_rows(select_rows(energy, [0, 2], 4))
    assert repeated(energy, 2, 3)(x).shape == (6,)
