"""The conformance kit on the energies of faces; the generator of drawn faces: its pictures, and its training on the flow."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy.testing import check_energy
from composable_energy_faces import ATTRIBUTES, GeneratedFaces, draw, judge
from composable_energy_faces.judge import features, frechet_distance
from composable_energy_faces.mapping import FaceMapping
from composable_energy_faces.train_generator import pairs, train


@pytest.mark.full
def test_its_pictures_are_faces_of_all_kinds():
    base = GeneratedFaces().base
    with pytest.raises(PluginNotFound, match="fit_attributes"):
        GeneratedFaces().load("smiling")
    z = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures = base.decoder(z)
    assert pictures.shape == (400, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    shares = judge(pictures).attributes.float().mean(0)
    assert ((shares > 0.2) & (shares < 0.8)).all(), dict(zip(ATTRIBUTES, shares.tolist(), strict=True))
    drawn = features(draw(400, seed=3).images)
    assert frechet_distance(features(pictures), drawn) < frechet_distance(torch.zeros_like(drawn), drawn) / 3


@pytest.mark.full
def test_the_training_brings_the_mapping_nearer_to_the_flow():
    z, codes = pairs(1500, levels=8, seed=2)
    assert torch.equal(codes[:5], pairs(1500, levels=8, seed=2)[1][:5])
    mapping, error = train(z, codes, steps=60, batch_size=64)
    assert isinstance(mapping, FaceMapping)
    assert error < codes.square().mean()


@pytest.fixture(scope="module")
def codes():
    return ce.get("energy", "faces").decoder.encode(draw(6, seed=21).images)  # pyright: ignore


@pytest.mark.full
@pytest.mark.parametrize("name", ["faces", "faces/male", "faces/hair=red"])
def test_face_energies_keep_the_contract(name, codes):
    check_energy(ce.get("energy", name), codes)


def test_the_registry_lists_and_shares_the_family():
    assert "smiling" in ce.installed()["faces"].members
    male, smiling = ce.get("energy", "faces/male"), ce.get("energy", "faces/smiling")
    assert len((male & smiling & ce.get("energy", "faces")).bases) == 1
    assert male.decoder is not smiling.decoder and (male & smiling).decoder is male.decoder
