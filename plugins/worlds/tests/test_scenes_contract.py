"""The conformance kit on the scene energies, and the meaning of their names."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.testing import check_energy
from composable_energy_scenes import COLORS, KINDS, SceneFamily, judge_images, load_concepts, load_judge
from composable_energy_scenes.concepts import SAMPLING
from composable_energy_scenes.weights import FOLDER


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


def test_the_report_of_the_weights_is_with_them():
    report = json.loads((FOLDER / "report.json").read_text())
    assert report["judge"]["renders"]["color"] > 0.99 and report["heads"]["position"] < 0.05


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_chains_start_near_the_data_also_beside_classifiers_that_know_no_noise():
    concepts, chains = load_concepts(), torch.arange(16)
    heads = [ce.ClassifierEnergy(nn.Sequential(concepts.color().logits), None, concepts.base, labels=len(COLORS)) for _ in range(7)]
    others = [~head.given(y=(chains + 1 + k) % len(COLORS)) for k, head in enumerate(heads)]
    position = ce.GaussianHead(concepts.position.network, concepts.base, dims=2)
    energy = ce.all_of(position.near(torch.tensor([[0.3, -0.2]]).expand(16, 2), 0.2), *others).sharpened(8.0)
    _, trace = energy.sample(16, seed=0, trace=True, sampler=SAMPLING.sampler, **{**SAMPLING.options, "levels": 2})
    assert trace.sampler.mean is None or trace.sampler.mean.abs().max() < SAMPLING.options["sigma_max"]  # None: a standard Gaussian
