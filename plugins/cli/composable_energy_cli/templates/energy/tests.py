"""Tests of the energy: the conformance kit, its name, its density."""

import pytest
import torch
from my_plugin import MyPlugin

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import energy_checks, parametrize_with_checks

POINTS = torch.tensor([[0.5, 0.1], [1.0, -1.0], [-0.3, 2.0], [0.2, 0.9]])


@parametrize_with_checks(energy_checks(lambda: MyPlugin(radius=1.5), POINTS))
def test_the_energy_conforms(check):
    check()


def test_it_has_a_name():
    assert isinstance(ce.load("my-plugin", radius=1.0), MyPlugin)


def test_it_can_be_combined():
    E = ce.load("my-plugin") & (lambda x: 4 * torch.relu(-x[:, 0]))
    x = E.sample(500, seed=0)
    assert abs(x.norm(dim=1).mean().item() - 2.0) < 0.1
    assert (x[:, 0] > 0).float().mean() > 0.8


def test_a_wrong_option_is_refused():
    with pytest.raises(OptionError, match="width must be positive"):
        MyPlugin(width=0.0)
