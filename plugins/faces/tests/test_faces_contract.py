"""The conformance kit on the face energies."""

from __future__ import annotations

import pytest

import composable_energy as ce
from composable_energy.testing import check_energy
from composable_energy_faces import draw


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
