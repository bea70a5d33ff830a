"""The conformance kit on the scene energies, and the meaning of their names."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.testing import check_energy
from composable_energy_scenes import COLORS, KINDS, SceneFamily, judge_images, load_concepts, load_judge


@pytest.fixture(scope="module")
def codes():
    return torch.randn(6, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.full
@pytest.mark.parametrize("name", ["scenes/color=red", "scenes/left"])
def test_scene_energies_keep_the_contract(name, codes):
    check_energy(ce.get("energy", name), codes)


@pytest.mark.full
@pytest.mark.parametrize("make", [lambda c: c.of_color("red"), lambda c: c.of_position((0.2, -0.4)), lambda c: c.size(0.5)])
def test_energies_under_conditions_keep_the_contract(make, codes):
    check_energy(make(load_concepts()), codes)


def test_the_family_lists_its_members_and_shares_their_base():
    family = SceneFamily()
    assert len(family.members()) == len(COLORS) + len(KINDS) + 6
    left, red = ce.get("energy", "scenes/left"), ce.get("energy", "scenes/color=red")
    assert len((left & red & ce.get("energy", "scenes")).bases) == 1 and ce.get("energy", "scenes").equals(load_concepts().base)
    with pytest.raises(ce.errors.PluginNotFound, match="'middle'"):
        family.load("middle")


@pytest.mark.full
def test_an_expression_by_name_means_what_it_says():
    """Thirty-two pictures of a shortened draw: three standard errors below what full draws reach."""
    energy = ce.get("energy", "scenes/left") & ~ce.get("energy", "scenes/color=red") & ce.get("energy", "scenes/small")
    call = {"sampler": "annealed", "levels": 60, "corrector_steps": 2, "delta": 0.3, "max_gradient": 3.0}
    seen = judge_images(energy.sharpened(4).sample(32, seed=0, **call), load_judge())
    right = (seen.position[:, 0] < 0.1) & (seen.color != 0) & (seen.size < 0.52)
    assert right.float().mean() > 0.8
