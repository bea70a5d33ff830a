"""Tests of the plug-in: the conformance kit, and the names of its entry points."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import energy_checks, parametrize_with_checks, sampler_checks
from composable_energy_example import RandomWalk, Ring

POINTS = torch.tensor([[0.5, 0.1], [1.0, -1.0], [-0.3, 2.0], [0.2, 0.9]])


@parametrize_with_checks(energy_checks(Ring(radius=1.5), POINTS))
def test_the_ring_conforms(check):
    check()


@parametrize_with_checks(sampler_checks(RandomWalk(scale=1.5), steps=100))
def test_the_random_walk_conforms(check):
    check()


def test_both_have_names():
    ring = ce.get_energy("ring", radius=2.0)
    assert isinstance(ring, Ring)
    assert ce.get_sampler("random-walk") is RandomWalk
    points = ring.sample((500, 2), sampler="random-walk", scale=1.0, steps=300, seed=0)
    assert abs(points.norm(dim=1).mean().item() - 2.0) < 0.1


def test_wrong_options_are_told():
    with pytest.raises(OptionError, match="width must be positive"):
        Ring(width=0.0)
    with pytest.raises(OptionError, match="scale must be positive"):
        RandomWalk(scale=0.0)
